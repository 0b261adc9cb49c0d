"""What the tests share: peers in processes of their own, peers made of raw sockets, and ways to look at a process."""
