#include "textflag.h"

// func streamRuns(dst, step, buffer, run uintptr, count uint64)
TEXT ·streamRuns(SB), NOSPLIT, $0-40
	MOVQ dst+0(FP), DI
	MOVQ step+8(FP), R8
	MOVQ buffer+16(FP), SI
	MOVQ run+24(FP), R9
	MOVQ count+32(FP), R10

run:
	MOVQ R9, CX // bytes left of the run
	MOVQ DI, AX

line:
	MOVOU  (SI), X0
	MOVOU  16(SI), X1
	MOVOU  32(SI), X2
	MOVOU  48(SI), X3
	MOVNTO X0, (AX)
	MOVNTO X1, 16(AX)
	MOVNTO X2, 32(AX)
	MOVNTO X3, 48(AX)
	ADDQ   $64, SI
	ADDQ   $64, AX
	SUBQ   $64, CX
	JNZ    line

	ADDQ   R8, DI
	DECQ   R10
	JNZ    run
	RET

// func orderStreams()
TEXT ·orderStreams(SB), NOSPLIT, $0-0
	SFENCE
	RET
