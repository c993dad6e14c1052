// A simulation over mpiserve.hpp, for test_cpp.py: it ends with status 1 at what is not right.
#include <mpiserve.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace {

void expect(bool right, const char *what) {
  if (right) return;
  std::fprintf(stderr, "not right: %s\n", what);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

template <class Error, class Function> bool throws(int code, Function function) {
  try {
    function();
  } catch (const Error &error) {
    return error.code() == code && *error.what();
  }
  return false;
}

bool is_twice(const std::vector<float> &x, const std::vector<float> &y) {
  for (size_t i = 0; i < x.size(); i++)
    if (y[i] != 2 * x[i]) return false;
  return true;
}

std::vector<float> rows_of(int64_t rows, int rank) {
  std::vector<float> x(static_cast<size_t>(3 * rows));
  std::iota(x.begin(), x.end(), static_cast<float>(rank));
  return x;
}

void test_calls(const mpiserve::service &twice, int rank) {
  for (int64_t rows = 1; rows < 100; rows += 7) {
    const std::vector<float> x = rows_of(rows, rank);
    std::vector<float> y(x.size());
    const mpiserve_stats stats = twice.infer({{x.data(), {rows, 3}}}, {{y.data(), {rows, 3}}});
    expect(stats.rows == rows && is_twice(x, y), "a call");
  }
}

void test_requests(const mpiserve::service &twice, int rank) {
  const std::vector<float> x = rows_of(5, rank);
  std::vector<float> y(x.size()), z(x.size());
  mpiserve::request first = twice.submit({{"x", x.data(), {5, 3}}}, {{"y", y.data(), {5, 3}}});
  mpiserve::request second = twice.submit({{x.data(), {5, 3}}}, {{z.data(), {5, 3}}});
  mpiserve::request moved = std::move(first);
  expect(!first.valid() && moved.valid() && first.done(), "a request that was moved");
  while (!moved.done()) continue;
  expect(moved.stats().rows == 5 && is_twice(x, y), "a request");
  expect(second.wait_for(std::chrono::minutes(1)) == std::future_status::ready, "a wait");
  expect(is_twice(x, z) && second.get().rows == 5, "a request that has ended");
  moved = twice.submit({{x.data(), {5, 3}}}, {{y.data(), {5, 3}}});
  moved.cancel();
  expect(!moved.valid(), "a request that was cancelled");
  twice.submit({{x.data(), {5, 3}}}, {{y.data(), {5, 3}}}); // its destructor cancels it
}

void test_errors(const mpiserve::session &session, const mpiserve::service &twice) {
  std::vector<double> x(3);
  std::vector<float> y(3);
  auto call = [&] { twice.infer({{x.data(), {1, 3}}}, {{y.data(), {1, 3}}}); };
  expect(throws<mpiserve::argument_error>(MPISERVE_EDTYPE, call), "a wrong dtype");
  auto find = [&] { session.find("thrice"); };
  expect(throws<mpiserve::not_found_error>(MPISERVE_ENOTFOUND, find), "a service that is none");
  auto dims = [&] { mpiserve::tensor(y.data(), {1, 1, 1, 1, 1, 1, 1, 1, 3}); };
  expect(throws<mpiserve::argument_error>(MPISERVE_ESHAPE, dims), "too many dimensions");
  mpiserve_options late{};
  late.deadline = 1e-9;
  auto ends = [&] { twice.submit({{y.data(), {1, 3}}}, {{y.data(), {1, 3}}}, late).get(); };
  expect(throws<mpiserve::deadline_error>(MPISERVE_EDEADLINE, ends), "a deadline");
}

void test_buffers(const mpiserve::service &twice) {
  mpiserve::buffer rows = twice.take(4);
  mpiserve::buffer moved = std::move(rows);
  float *x = moved.input<float>(), *y = moved.output<float>();
  std::iota(x, x + 12, 1.0F);
  twice.infer({{x, {4, 3}}}, {{y, {4, 3}}});
  expect(moved.rows() == 4 && y[11] == 24, "a buffer");
}

void test_paces(const mpiserve::service &twice) {
  mpiserve_pace_options options{};
  options.lag = 1;
  mpiserve::pace first = twice.paced(options);
  mpiserve::pace pace = std::move(first);
  std::vector<float> x(3), y(3);
  for (int n = 0; n < 4; n++) {
    std::fill(x.begin(), x.end(), static_cast<float>(n));
    const mpiserve_stats stats = pace.step({{x.data(), {1, 3}}}, {{y.data(), {1, 3}}}, 60);
    expect(stats.age == (n > 0) && y[2] == 2.0F * static_cast<float>(n - stats.age), "a step");
  }
  pace.restart();
  expect(pace.step({{x.data(), {1, 3}}}, {{y.data(), {1, 3}}}).age == 0, "a restart");
  options.lag = -1;
  auto wrong = [&] { twice.paced(options); };
  expect(throws<mpiserve::argument_error>(MPISERVE_EARG, wrong), "a lag that is none");
}

#if __cplusplus >= 202002L
void test_spans(const mpiserve::service &twice) {
  std::vector<float> x(6, 3.0F), y(6);
  const std::span<const float> in(x);
  twice.infer({{in, {2, 3}}}, {{std::span(y), {2, 3}}});
  expect(is_twice(x, y), "spans");
  auto wrong = [&] { mpiserve::tensor(in, {3, 3}); };
  expect(throws<mpiserve::argument_error>(MPISERVE_ESHAPE, wrong), "a span of another size");
}
#else
void test_spans(const mpiserve::service &) {}
#endif

#ifdef __cpp_lib_mdspan
void test_mdspans(const mpiserve::service &twice) {
  using matrix = std::dextents<size_t, 2>;
  std::vector<float> x(12, 3.0F), y(12);
  const std::mdspan<const float, matrix> in(x.data(), 4, 3);
  const std::mdspan<float, std::extents<int, 4, 3>> out(y.data());
  expect(twice.infer({in}, {{"y", out}}).rows == 4 && is_twice(x, y), "mdspans");
  const std::layout_stride::mapping<matrix> part(matrix(4, 3), std::array<size_t, 2>{3, 1});
  twice.infer({std::mdspan(x.data(), part)}, {out}); // dense, which its type does not say
  const std::mdspan<float, matrix, std::layout_left> left(y.data(), 4, 3);
  auto columns = [&] { mpiserve::tensor("y", left); };
  expect(throws<mpiserve::argument_error>(MPISERVE_ESHAPE, columns), "columns");
  const std::layout_stride::mapping<matrix> gaps(matrix(3, 3), std::array<size_t, 2>{4, 1});
  auto apart = [&] { mpiserve::tensor("y", std::mdspan(y.data(), gaps)); };
  expect(throws<mpiserve::argument_error>(MPISERVE_ESHAPE, apart), "rows with gaps");
  const std::mdspan<float, matrix, std::layout_left> one(y.data(), 1, 3);
  expect(mpiserve::tensor(one).c().shape[1] == 3, "one row, in any order");
}
#else
void test_mdspans(const mpiserve::service &) {}
#endif

void test_all() {
  mpiserve::session opened;
  mpiserve::session session = std::move(opened);
  int rank;
  MPI_Comm_rank(session.comm(), &rank);
  const mpiserve::service twice = session.find("twice");
  session.step();
  twice.wait_ready(60);
  expect(std::string(twice.description().name) == "twice" && twice.state() >= MPISERVE_READY,
         "a service");
  test_calls(twice, rank);
  test_requests(twice, rank);
  test_errors(session, twice);
  test_buffers(twice);
  test_paces(twice);
  test_spans(twice);
  test_mdspans(twice);
  expect(session.counters().requests > 0, "counters");
  if (rank == 0) session.close();
  const mpiserve_session *none = nullptr;
  expect(rank || session.c() == none, "a session that is closed");
}

} // namespace

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  test_all();
  std::fputs("right\n", stdout); // in one piece: ranks share the stream
  return MPI_Finalize();
}
