"""Counters in Redis, which all workers share: one round trip for each request, by the clock of Redis."""

from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.limits import Count, CountersAway, Rate

# What app.limits.Bucket and app.limits.Window do, at once and with nobody between. Redis's numbers are exact to 2^53,
# so times are whole microseconds.
SCRIPT = """
local exact = ARGV[1] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tightest
for i, key in ipairs(KEYS) do
    local amount, window = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1]) * 1000000
    local over, left, more
    if exact then
        local oldest = tonumber(redis.call('LINDEX', key, 0))
        while oldest and oldest <= now - window do
            redis.call('LPOP', key)
            oldest = tonumber(redis.call('LINDEX', key, 0))
        end
        left = amount - redis.call('LLEN', key) - 1
        over = left < 0
        more = (oldest or now) + window - now
    else
        local interval = math.max(1, math.floor(window / amount))
        local full_at = tonumber(redis.call('GET', key) or 0)
        local room = (amount - 1) * interval - math.max(0, full_at - now)
        left = math.floor(room / interval)
        over = room < 0
        more = over and -room or interval - room % interval
    end
    local found = {i, over and 1 or 0, math.max(0, left), more}
    if not tightest
        or found[2] > tightest[2]
        or found[2] == tightest[2] and (found[3] < tightest[3] or found[3] == tightest[3] and more > tightest[4])
    then
        tightest = found
    end
end
if tightest[2] == 1 then
    return tightest
end
for i, key in ipairs(KEYS) do
    local amount, window = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1]) * 1000000
    if exact then
        redis.call('RPUSH', key, string.format('%.0f', now))
        redis.call('PEXPIRE', key, window / 1000)
    else
        local interval = math.max(1, math.floor(window / amount))
        local full_at = math.max(now, tonumber(redis.call('GET', key) or 0)) + interval
        redis.call('SET', key, string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
    end
end
return tightest
"""


class RedisCounters:
    """Counters in Redis."""

    def __init__(self, client: Redis, name: str) -> None:
        """Count by `client`; the keys begin with `name`."""
        self.name = name
        self.script = client.register_script(SCRIPT)

    async def count(self, rates: tuple[Rate, ...], client: str, *, exact: bool) -> Count:
        """Count one request unless one of its rates is over.

        Raises:
            CountersAway: Redis does not answer, or not as it should.
        """
        # Buckets and windows are kept in other forms, so they never share a key.
        kind = "window" if exact else "bucket"
        keys = [f"{self.name}:{kind}:{rate.amount}/{rate.window_s}:{client}" for rate in rates]
        try:
            found = await self.script(keys, [int(exact), *(number for rate in rates for number in rate)])
        except RedisError as error:
            raise CountersAway from error
        index, over, left, more_us = found
        return Count(rates[index - 1], bool(over), left, more_us)
