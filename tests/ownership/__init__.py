"""A checker of who may still touch whose memory: engines that work under faults, and a model of what may be where.

python -m ownership --help, in the folder tests, says how it is run; `make soak` runs it for an hour.

    words.py      the 8-byte words that memory is filled with; each says who put it there, and what for
    arena.py      the memory of a worker, which the checker sees too
    worker.py     a process with an engine, kvferry's or Mooncake's
    model.py      operations, and which words each place may hold at each moment
    slots.py      a worker's place among the others: starting, ending and restarting it
    transfers.py  READs and WRITEs at random, and what is looked at after each
    faults.py     what goes wrong on purpose
    links.py      network namespaces that are joined by links that can be cut
    plan.py       what a seed means: which engines, what they do
    driver.py     a world of workers from its start to its end
    report.py     counts, what is too little, and how a violation is told
"""
