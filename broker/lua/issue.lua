-- Publishes a shard's task and notes that the shard is open. Planner only.
--
-- KEYS: 1 tasks stream   2 open hash   3 dropped mark of the job   4 mark of this memory
-- ARGV: 1 "JOB/SHARD"   2 "CHARGE NONCE", the nonce new in every call   3 payload   4 the nonce
--
-- Idempotent within one call (a client that retries finds its own nonce), unconditional across
-- calls: an overdue shard is issued again. XADD comes first, so a full server refuses the whole.
if redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2] then
  return 0
end
redis.call('XADD', KEYS[1], '*', 'm', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('SET', KEYS[4], ARGV[4])
redis.call('DEL', KEYS[3]) -- work for a job means that the job lives
return 1
