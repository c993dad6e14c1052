/* loadgen: a client that MLPerf LoadGen drives. Not a part of libmpiserve: mpiserve/bench/judge.py
 * compiles it when it is used first, with the sources of LoadGen.
 *
 * A sample is a row of the service: one input and one output, float32 [-1, width]. LoadGen's thread
 * sends a query and waits for the answers. LoadGen issues what has become due meanwhile as one
 * query, whose samples are sent together, as many as a batch holds; it counts the time from when
 * each was due. A thread of its own for the answers needs a third core. */
#define MPISERVE_NO_MPI
#include <loadgen.h>
#include <mpiserve.h>
#include <query_sample_library.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <system_under_test.h>
#include <test_settings.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <string>
#include <vector>

using mlperf::QuerySample;
using mlperf::TestScenario;

/* A test, as mpiserve/bench/judge.py describes it. */
struct bench_test {
  int32_t scenario; /* mlperf::TestScenario */
  int32_t accuracy; /* 1: each sample once, and all answers go to the log */
  int32_t unique;   /* 1: no sample twice; 2: always the same one */
  int32_t samples_per_query;
  int64_t samples, width, max_rows;
  const float *inputs; /* [samples, width] */
  double rate;         /* samples per second: of Server; what LoadGen may expect of the others */
  int64_t duration_ms, limit_ns, min_queries;
  const char *folder; /* for LoadGen's logs */
};

namespace {

constexpr int FLIGHTS = 4;      /* requests that a lane holds */
constexpr double PATIENCE = 60; /* seconds for one request */

/* As the kernel has it; the headers of some C libraries do not. */
struct Attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

constexpr uint64_t SLICE_NS = 100000; /* the least that Linux allows */

/* The kernel wakes a thread up to 50 microseconds late, unless it says that it minds: LoadGen
 * sleeps until the next query. And where threads share a core, each runs for some milliseconds
 * before the next one, unless it asks for shorter turns (Linux 6.12 and later): a query is to end
 * within one millisecond. The thread that writes LoadGen's logs inherits both. */
class Punctual {
public:
  Punctual() {
    prctl(PR_SET_TIMERSLACK, 1UL);
    turns(SLICE_NS);
  }
  ~Punctual() {
    prctl(PR_SET_TIMERSLACK, 0UL); /* as it was */
    turns(0);
  }

private:
  static void turns(uint64_t ns) {
    Attributes mine = {};
    if (syscall(SYS_sched_getattr, 0, &mine, sizeof mine, 0)) return;
    if (mine.policy) return; /* SCHED_OTHER alone has them */
    mine.runtime = ns;
    syscall(SYS_sched_setattr, 0, &mine, 0);
  }
};

/* A request, and the samples that it is made of. */
struct Flight {
  mpiserve_request request = {};
  std::vector<QuerySample> samples;
  std::vector<float> x, y;
};

class Client : public mlperf::SystemUnderTest {
public:
  Client(mpiserve_session *session, mpiserve_service *service, const bench_test &test)
      : test_(test), session_(session), service_(service) {
    for (Flight &flight : flights_) {
      size_t values = static_cast<size_t>(test.max_rows * test.width);
      flight.x.resize(values);
      flight.y.resize(values);
      flight.samples.reserve(static_cast<size_t>(test.max_rows));
      free_.push_back(&flight);
    }
  }

  const std::string &Name() override { return name_; }
  void FlushQueries() override {}

  /* The next request leaves before the answers of the last one are passed on. */
  void IssueQuery(const std::vector<QuerySample> &samples) override {
    size_t sent = 0;
    while (sent < samples.size() || is_flying()) {
      Flight *landed = is_flying() ? land() : nullptr;
      while (can_send() && sent < samples.size()) sent += send(samples, sent);
      if (landed) complete(landed);
    }
  }

  /* Why a request has failed; empty: none has. */
  const std::string &failure() const { return failure_; }

private:
  bool can_send() const { return !free_.empty() && flying_.size() < FLIGHTS; }
  bool is_flying() const { return !flying_.empty(); }

  /* Sends what a request can hold of the samples from the first on; returns how many these are. */
  size_t send(const std::vector<QuerySample> &samples, size_t first) {
    Flight *flight = free_.back();
    size_t rows = std::min(samples.size() - first, static_cast<size_t>(test_.max_rows));
    const QuerySample *from = samples.data() + first;
    flight->samples.assign(from, from + rows);
    for (size_t i = 0; i < rows; i++)
      std::memcpy(&flight->x[i * width()], sample(i, *flight), row());
    mpiserve_tensor in = tensor(flight->x.data(), rows), out = tensor(flight->y.data(), rows);
    note(mpiserve_submit(service_, 1, &in, 1, &out, nullptr, &flight->request));
    free_.pop_back();
    flying_.push_back(flight);
    return rows;
  }

  /* Waits for the oldest request. */
  Flight *land() {
    Flight *flight = flying_.front();
    flying_.pop_front();
    if (flight->request.id) {
      note(mpiserve_wait(session_, &flight->request, PATIENCE, nullptr));
      if (flight->request.id) mpiserve_cancel(session_, &flight->request);
    }
    return flight;
  }

  /* Tells LoadGen, which waits for samples that failed too. */
  void complete(Flight *flight) {
    responses_.clear();
    for (size_t i = 0; i < flight->samples.size(); i++) {
      auto answer = reinterpret_cast<uintptr_t>(&flight->y[i * width()]);
      responses_.emplace_back(flight->samples[i].id, answer, row());
    }
    mlperf::QuerySamplesComplete(responses_.data(), responses_.size());
    free_.push_back(flight);
  }

  size_t width() const { return static_cast<size_t>(test_.width); }
  size_t row() const { return width() * sizeof(float); }
  const float *sample(size_t i, const Flight &flight) const {
    return test_.inputs + flight.samples[i].index * width();
  }

  mpiserve_tensor tensor(float *data, size_t rows) const {
    return {nullptr, data, MPISERVE_FLOAT32, 2, {static_cast<int64_t>(rows), test_.width}};
  }

  void note(int code) {
    if (code && failure_.empty()) failure_ = mpiserve_last_error();
  }

  const bench_test &test_;
  mpiserve_session *session_;
  mpiserve_service *service_;
  /* One more than fly: that which has landed. */
  Flight flights_[FLIGHTS + 1];
  std::vector<Flight *> free_;
  std::deque<Flight *> flying_;
  std::vector<mlperf::QuerySampleResponse> responses_;
  std::string failure_, name_ = "mpiserve";
};

/* All samples are in memory. */
class Samples : public mlperf::QuerySampleLibrary {
public:
  explicit Samples(size_t count) : count_(count) {}
  const std::string &Name() override { return name_; }
  size_t TotalSampleCount() override { return count_; }
  size_t PerformanceSampleCount() override { return count_; }
  void LoadSamplesToRam(const std::vector<mlperf::QuerySampleIndex> &) override {}
  void UnloadSamplesFromRam(const std::vector<mlperf::QuerySampleIndex> &) override {}

private:
  size_t count_;
  std::string name_ = "rows";
};

mlperf::TestSettings settings_of(const bench_test &test) {
  constexpr double NS = 1e9;
  mlperf::TestSettings settings;
  settings.scenario = static_cast<TestScenario>(test.scenario);
  settings.mode =
      test.accuracy ? mlperf::TestMode::AccuracyOnly : mlperf::TestMode::PerformanceOnly;
  settings.single_stream_expected_latency_ns = NS / test.rate;
  settings.multi_stream_expected_latency_ns = NS / test.rate * test.samples_per_query;
  settings.multi_stream_samples_per_query = static_cast<uint64_t>(test.samples_per_query);
  settings.server_target_qps = settings.offline_expected_qps = test.rate;
  settings.server_target_latency_ns = static_cast<uint64_t>(test.limit_ns);
  settings.server_coalesce_queries = true;
  settings.min_duration_ms = static_cast<uint64_t>(test.duration_ms);
  settings.min_query_count = static_cast<uint64_t>(test.min_queries);
  settings.performance_issue_unique = test.unique == 1;
  settings.performance_issue_same = test.unique == 2;
  return settings;
}

std::string run(mpiserve_session *session, mpiserve_service *service, const bench_test &test) {
  Samples samples(static_cast<size_t>(test.samples));
  mlperf::LogSettings logs;
  logs.log_output.outdir = test.folder;
  logs.enable_trace = false;
  Punctual punctual;
  Client client(session, service, test);
  mlperf::StartTest(&client, &samples, settings_of(test), logs);
  return client.failure();
}

} // namespace

/* Runs a test, and writes LoadGen's logs. Returns NULL, or a text, which the next call replaces. */
extern "C" const char *bench_loadgen(mpiserve_session *session, mpiserve_service *service,
                                     const bench_test *test) {
  static std::string failure;
  try {
    failure = run(session, service, *test);
  } catch (const std::exception &error) {
    failure = error.what();
  }
  return failure.empty() ? nullptr : failure.c_str();
}
