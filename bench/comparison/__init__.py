"""The comparison of kvferry with Mooncake, NIXL and a plain C program: what `make bench` runs."""
