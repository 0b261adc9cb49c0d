"""A checker of offers that are revoked: no byte moves by one after revoke() has returned, whatever its peer does.

python -m revocation --help, in the folder tests, says how it is run.

    pages.py   the owner's memory, and the bytes that say who put them there, and for which round
    worker.py  a peer: a process that moves pages by the offers that it gets
    trickle.py a peer that sends the payload of one request little by little, for as long as it is let
    peers.py   the peers of a world: which live, are slow, or are stopped
    world.py   the owner, in a process of its own: rounds of offer, transfer, revoke, and reuse of the pages
    report.py  counts and times, and what is too little
"""
