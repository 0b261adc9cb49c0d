/*
 * The kernels that copy many blocks between a GPU's memory and page-locked memory of the host, or within the GPU.
 * scripts/generate_kernels.py compiles this file to kernels.ptx, which the library has in it: nobody who builds or uses
 * kvferry needs a compiler for GPUs. tests/kerneltest compiles it for the processor, and checks every access.
 *
 * A destination consists of slots: 16 bytes that begin at a multiple of 16. One thread copies one slot.
 *
 *  1. Of a list, a warp takes chunks of 2 KiB: it finds the copy that the chunk belongs to, and each thread copies four
 *     slots of it. The chunks of all copies have one numbering, and each warp takes every n-th, so that a few long
 *     copies and many short ones occupy all warps alike.
 *  2. Of strided runs, a thread takes every n-th slot of all groups.
 *  3. A thread loads all its slots before it stores the first one: the way to the host's memory is long.
 *  4. A slot that lies in its copy is stored at once. If source and destination agree in their last four bits, one load
 *     of 16 bytes gets its bytes; otherwise two do, from which they are shifted together.
 *  5. The slots at the ends are copied byte by byte where they are not whole. No byte outside of a copy is read or
 *     written.
 */
#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define KERNEL_FUNCTION static __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(512)
#define PARAMETER const __grid_constant__
#define THREAD threadIdx.x
#define BLOCK blockIdx.x
#define BLOCKS gridDim.x
#define UNROLLED _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#endif

#include "kernels.h"

enum { WARPS = KERNEL_THREADS / KERNEL_WARP, SLOTS = KERNEL_CHUNK / KERNEL_SLOT / KERNEL_WARP };

#ifdef __CUDACC_RTC__
struct words {
    uint64_t low, high;
};

/* Loads 16 bytes if the condition holds. They are used once, and should leave the caches to the model's kernels. */
KERNEL_FUNCTION struct words load16(bool condition, uint64_t at)
{
    struct words v = {0, 0};

    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.cs.v2.u64 {%0, %1}, [%2]; }"
                 : "+l"(v.low), "+l"(v.high)
                 : "l"(at), "r"((uint32_t)condition)
                 : "memory");
    return v;
}

KERNEL_FUNCTION void store16(uint64_t at, struct words v)
{
    asm volatile("st.global.cs.v2.u64 [%0], {%1, %2};" ::"l"(at), "l"(v.low), "l"(v.high) : "memory");
}

KERNEL_FUNCTION void copy1(uint64_t to, uint64_t from)
{
    uint32_t v;

    asm volatile("ld.global.u8 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    asm volatile("st.global.u8 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

/* Eight bytes from two words, of which the lower one gives up so many bits. A shift by 64 gives 0. */
KERNEL_FUNCTION uint64_t joined(uint64_t low, uint64_t high, uint32_t bits)
{
    uint64_t a, b;

    asm("shr.b64 %0, %1, %2;" : "=l"(a) : "l"(low), "r"(bits));
    asm("shl.b64 %0, %1, %2;" : "=l"(b) : "l"(high), "r"(64 - bits));
    return a | b;
}
#endif

/* The part of a copy that one thread has to do: a slot of the destination. */
struct slot {
    uint64_t at;                /* where the slot begins */
    uint64_t to, end;           /* the destination of the copy */
    uint64_t delta;             /* from - to */
    bool wide;                  /* all of the slot is of the copy, and so is what loads of 16 bytes read */
    struct words first, second; /* what they have read: the second only where the first does not have all bytes */
};

KERNEL_FUNCTION void load_slot(struct slot *s)
{
    uint64_t source = s->at + s->delta, below = source / KERNEL_SLOT * KERNEL_SLOT;
    bool whole = s->at >= s->to && s->at + KERNEL_SLOT <= s->end, aligned = source == below;

    s->wide = whole && (aligned || (below >= s->to + s->delta && below + 2 * KERNEL_SLOT <= s->end + s->delta));
    s->first = load16(s->wide, below);
    s->second = load16(s->wide && !aligned, below + KERNEL_SLOT);
}

KERNEL_FUNCTION void store_slot(const struct slot *s)
{
    uint64_t at = s->at > s->to ? s->at : s->to, end = s->at + KERNEL_SLOT < s->end ? s->at + KERNEL_SLOT : s->end;
    uint64_t source = s->at + s->delta;
    uint32_t bits = (uint32_t)(source % 8) * 8;
    bool upper = source % KERNEL_SLOT >= 8; /* the bytes begin in the upper word of the first load */
    uint64_t middle = upper ? s->second.low : s->first.high;
    struct words v;

    if (s->wide) {
        v.low = joined(upper ? s->first.high : s->first.low, middle, bits);
        v.high = joined(middle, upper ? s->second.high : s->second.low, bits);
        store16(s->at, v);
        return;
    }
    ROLLED
    for (; at < end; at++) {
        copy1(at, at + s->delta);
    }
}

/* The number of the copy that a chunk belongs to: the last one whose first chunk is not behind it. */
KERNEL_FUNCTION uint32_t copy_of(const struct kernel_list *list, uint32_t chunk)
{
    uint32_t low = 0, high = list->count, middle;

    while (high - low > 1) {
        middle = (low + high) / 2;
        if (list->copies[middle].first <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

KERNEL kvferry_copy_list(PARAMETER struct kernel_list list)
{
    uint32_t warp = BLOCK * WARPS + THREAD / KERNEL_WARP, chunk, i, k;
    struct slot slots[SLOTS];
    uint64_t at;

    for (chunk = warp; chunk < list.chunks; chunk += BLOCKS * WARPS) {
        i = copy_of(&list, chunk);
        at = list.copies[i].to / KERNEL_LINE * KERNEL_LINE + (uint64_t)(chunk - list.copies[i].first) * KERNEL_CHUNK +
             THREAD % KERNEL_WARP * KERNEL_SLOT;
        UNROLLED
        for (k = 0; k < SLOTS; k++) {
            slots[k].at = at + k * KERNEL_WARP * KERNEL_SLOT;
            slots[k].to = list.copies[i].to;
            slots[k].end = list.copies[i].to + list.copies[i].length;
            slots[k].delta = list.copies[i].from - list.copies[i].to;
            load_slot(&slots[k]);
        }
        UNROLLED
        for (k = 0; k < SLOTS; k++) {
            store_slot(&slots[k]);
        }
    }
}

/* A slot by its number among the slots of all groups. A number behind the last one gives a slot without bytes. */
KERNEL_FUNCTION struct slot slot_of(const struct kernel_strided *strided, uint32_t number)
{
    uint32_t run = number / strided->slots, index;
    const struct kernel_base *base;
    struct slot s;
    int i;

    s.to = s.delta = 0;
    UNROLLED
    for (i = KERNEL_DIMENSIONS - 1; i >= 0; i--) {
        index = run % strided->counts[i];
        run /= strided->counts[i];
        s.to += index * (uint64_t)strided->to_strides[i];
        s.delta += index * (uint64_t)(strided->from_strides[i] - strided->to_strides[i]);
    }
    base = &strided->at[run < strided->bases ? run : 0]; /* what is left of the number is the group's */
    s.to += base->to;
    s.delta += base->from - base->to;
    s.at = s.to / KERNEL_SLOT * KERNEL_SLOT + (uint64_t)(number % strided->slots) * KERNEL_SLOT;
    s.end = number < strided->total ? s.to + strided->length : s.to;
    return s;
}

KERNEL kvferry_copy_strided(PARAMETER struct kernel_strided strided)
{
    uint32_t threads = BLOCKS * KERNEL_THREADS, number, k;
    struct slot slots[SLOTS];

    for (number = BLOCK * KERNEL_THREADS + THREAD; number < strided.total; number += SLOTS * threads) {
        UNROLLED
        for (k = 0; k < SLOTS; k++) {
            slots[k] = slot_of(&strided, number + k * threads);
            load_slot(&slots[k]);
        }
        UNROLLED
        for (k = 0; k < SLOTS; k++) {
            store_slot(&slots[k]);
        }
    }
}
