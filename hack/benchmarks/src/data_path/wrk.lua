-- The n-th thread connects to the n-th address of ADDRESSES, so that several servers can be
-- asked without anything between. At the end, one line of figures, times in microseconds.
local addresses = {}
for host, port in os.getenv("ADDRESSES"):gmatch("([%d.]+):(%d+)") do
  addresses[#addresses + 1] = wrk.lookup(host, port)[1]
end
local threads = 0

function setup(thread)
  thread.addr = addresses[threads % #addresses + 1]
  threads = threads + 1
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format("figures %d %d %d %d %d %d %d",
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
