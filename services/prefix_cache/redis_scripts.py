"""What changes on a Redis server at once: Lua scripts, each on keys of one slot.

The accounts of a namespace are a sorted set of its blocks by last use and a hash of their sizes. The tenants of a
server are a sorted set of namespaces by what they hold, and one by when they were seen last. A full server refuses
blocks, never accounts (`allow-oom`): what is read is still noted, and what goes is still counted.
"""

ACCOUNT = """#!lua flags=allow-oom
local order, sizes = KEYS[1], KEYS[2]
local quota, seconds = tonumber(ARGV[1]), ARGV[2]
if redis.call('EXISTS', order, sizes) == 1 then redis.call('DEL', order, sizes) end
local total = 0
for at = 3, #ARGV, 2 do
    local key, size = ARGV[at], ARGV[at + 1]
    local before = redis.call('HGET', sizes, key) or 0
    redis.call('HSET', sizes, key, size)
    redis.call('ZADD', order, redis.call('HINCRBY', sizes, 'clock', 1), key)
    total = redis.call('HINCRBY', sizes, 'total', size - before)
end
local found = {total}
while found[1] > quota do
    local oldest = redis.call('ZPOPMIN', order)[1]
    found[1] = redis.call('HINCRBY', sizes, 'total', 0 - (redis.call('HGET', sizes, oldest) or 0))
    redis.call('HDEL', sizes, oldest)
    found[#found + 1] = oldest
end
redis.call('EXPIRE', order, seconds)
redis.call('EXPIRE', sizes, seconds)
return found
"""
"""Notes that blocks were used now; returns what is held, and the blocks that have to go for them, no longer counted.

KEYS: order, sizes. ARGV: quota, seconds to live, then key and size of each block. Where one of the two accounts was
lost, both are begun anew."""

FORGET = """#!lua flags=allow-oom
local order, sizes = KEYS[1], KEYS[2]
local total = 0
for _, key in ipairs(ARGV) do
    total = redis.call('HINCRBY', sizes, 'total', 0 - (redis.call('HGET', sizes, key) or 0))
    redis.call('HDEL', sizes, key)
    redis.call('ZREM', order, key)
end
if redis.call('EXISTS', order) == 0 then
    redis.call('DEL', sizes)
    return {0}
end
return {total}
"""
"""Counts blocks no longer; returns what is held. KEYS: order, sizes. ARGV: keys of blocks."""

GIVE_WAY = """#!lua flags=allow-oom
local order, sizes = KEYS[1], KEYS[2]
local wanted, freed = tonumber(ARGV[1]), 0
local found = {tonumber(redis.call('HGET', sizes, 'total') or 0)}
while freed < wanted do
    local oldest = redis.call('ZPOPMIN', order)[1]
    if not oldest then break end
    local size = tonumber(redis.call('HGET', sizes, oldest) or 0)
    freed = freed + size
    found[1] = redis.call('HINCRBY', sizes, 'total', 0 - size)
    redis.call('HDEL', sizes, oldest)
    found[#found + 1] = oldest
end
if redis.call('EXISTS', order) == 0 then
    redis.call('DEL', sizes)
    found[1] = 0
end
return found
"""
"""Counts the longest unused blocks no longer; returns what is held, and those blocks. ARGV: bytes to be freed."""

HOLDS = """#!lua flags=allow-oom
local totals, seen = KEYS[1], KEYS[2]
local name, total, seconds = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = tonumber(redis.call('TIME')[1])
local gone = redis.call('ZRANGE', seen, '-inf', now - seconds, 'BYSCORE', 'LIMIT', 0, 16)
if total > 0 then
    redis.call('ZADD', totals, total, name)
    redis.call('ZADD', seen, now, name)
else
    gone[#gone + 1] = name
end
for _, other in ipairs(gone) do
    redis.call('ZREM', totals, other)
    redis.call('ZREM', seen, other)
end
redis.call('EXPIRE', totals, seconds)
redis.call('EXPIRE', seen, seconds)
return {}
"""
"""Notes what a namespace holds. KEYS: totals, seen. ARGV: namespace, bytes, seconds until an unseen one is gone."""
