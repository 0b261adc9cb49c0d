package main

// The central metadata stores that this library offers register themselves. That of HTTP is in core/metadata.
import (
	_ "kvferry/core/metadata/etcd"
	_ "kvferry/core/metadata/redis"
)
