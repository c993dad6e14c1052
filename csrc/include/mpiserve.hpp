/* mpiserve.hpp: libmpiserve for C++17 and later, over mpiserve.h alone: the header has the contract
 * of each call, and this one says what is different.
 *
 *   - An error is an exception: mpiserve::error, or a subclass, with the code and the text.
 *   - A session, a request, a buffer is freed by its destructor, which throws nothing. They can be
 *     moved, not copied. A session outlives its requests and buffers. The destructor of
 *     a request of a closed session does nothing; that of a buffer must run before another
 *     session is opened.
 *   - A tensor is a view of the caller's memory, which lives until the request has ended.
 *   - Threads as in mpiserve.h: one at a time uses a session and what belongs to it.
 */
#ifndef MPISERVE_HPP
#define MPISERVE_HPP

#include <chrono>
#include <complex>
#include <exception>
#include <future>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif
#if __cplusplus > 202002L && __has_include(<mdspan>)
#include <array>
#include <mdspan>
#endif

#include "mpiserve.h"

namespace mpiserve {

/* ---- errors ------------------------------------------------------------------------------ */

/* Any failure: code() is an mpiserve_code, what() the details. */
class error : public std::runtime_error {
public:
  error(int code, const std::string &text) : std::runtime_error(text), code_(code) {}
  int code() const noexcept { return code_; }

private:
  int code_;
};

/* An argument, a name, a dtype, a shape or a number of rows does not fit; nothing was sent. */
struct argument_error : error {
  using error::error;
};

/* No service of this name. */
struct not_found_error : error {
  using error::error;
};

/* The model failed: while loading, or on this batch. */
struct model_error : error {
  using error::error;
};

/* The time-out passed, and the request goes on. */
struct timeout_error : error {
  using error::error;
};

/* The deadline of the request passed: it has ended. */
struct deadline_error : error {
  using error::error;
};

/* The request was cancelled. */
struct cancelled_error : error {
  using error::error;
};

/* Another rank ended with an error, or died. */
struct peer_error : error {
  using error::error;
};

/* The queue of the service is full. */
struct full_error : error {
  using error::error;
};

/* Throws what stands for a code. */
[[noreturn]] inline void raise(int code, const std::string &text) {
  switch (code) {
    case MPISERVE_EARG:
    case MPISERVE_ENAME:
    case MPISERVE_EDTYPE:
    case MPISERVE_ESHAPE:
    case MPISERVE_EROWS: throw argument_error(code, text);
    case MPISERVE_ENOTFOUND: throw not_found_error(code, text);
    case MPISERVE_EMODEL: throw model_error(code, text);
    case MPISERVE_ETIMEOUT: throw timeout_error(code, text);
    case MPISERVE_EDEADLINE: throw deadline_error(code, text);
    case MPISERVE_ECANCELLED: throw cancelled_error(code, text);
    case MPISERVE_EPEER: throw peer_error(code, text);
    case MPISERVE_EFULL: throw full_error(code, text);
    default: throw error(code, text);
  }
}

/* Throws unless the code is MPISERVE_OK. */
inline void check(int code) {
  if (code != MPISERVE_OK) raise(code, mpiserve_last_error()); /* of this thread's last failure */
}

/* ---- tensors ----------------------------------------------------------------------------- */

template <class> inline constexpr bool never = false;

/* The mpiserve_dtype of a C++ type: bool, integers by size and sign, float, double, and complex of
 * both. Another type does not compile: give a tensor its dtype by number. */
template <class T> constexpr int dtype_of() {
  if constexpr (std::is_same_v<T, bool>)
    return MPISERVE_BOOL;
  else if constexpr (std::is_same_v<T, float>)
    return MPISERVE_FLOAT32;
  else if constexpr (std::is_same_v<T, double>)
    return MPISERVE_FLOAT64;
  else if constexpr (std::is_same_v<T, std::complex<float>>)
    return MPISERVE_COMPLEX64;
  else if constexpr (std::is_same_v<T, std::complex<double>>)
    return MPISERVE_COMPLEX128;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 1)
    return std::is_signed_v<T> ? MPISERVE_INT8 : MPISERVE_UINT8;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 2)
    return std::is_signed_v<T> ? MPISERVE_INT16 : MPISERVE_UINT16;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 4)
    return std::is_signed_v<T> ? MPISERVE_INT32 : MPISERVE_UINT32;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 8)
    return std::is_signed_v<T> ? MPISERVE_INT64 : MPISERVE_UINT64;
  else
    static_assert(never<T>, "no dtype of mpiserve matches this type");
}

/* A view of dense, C-contiguous memory of the caller's. Without a name its position in the call
 * says which tensor of the signature it is. The name, as the memory, lives as long as the view. */
class tensor {
public:
  using shape_type = std::initializer_list<int64_t>;

  template <class T> tensor(T *data, shape_type shape) : tensor(nullptr, data, shape) {}

  template <class T>
  tensor(const char *name, T *data, shape_type shape)
      : tensor(name, const_cast<std::remove_const_t<T> *>(data), dtype_of<std::remove_const_t<T>>(),
               shape.begin(), shape.size()) {}

  /* Of any dtype, and of any number of dimensions.
   * argument_error: more than MPISERVE_MAX_DIMS. */
  tensor(const char *name, void *data, int dtype, const int64_t *shape, size_t n) : c_{} {
    if (n > MPISERVE_MAX_DIMS) check(mpiserve_error(MPISERVE_ESHAPE, "too many dimensions"));
    c_.name = name;
    c_.data = data;
    c_.dtype = dtype;
    c_.ndim = static_cast<int32_t>(n);
    for (size_t i = 0; i < n; i++) c_.shape[i] = shape[i];
  }

#if __cplusplus >= 202002L
  /* All of a span, as rows of the given shape. argument_error: it has another number of elements.
   */
  template <class T, size_t N>
  tensor(std::span<T, N> data, shape_type shape) : tensor(nullptr, data, shape) {}

  template <class T, size_t N>
  tensor(const char *name, std::span<T, N> data, shape_type shape)
      : tensor(name, data.data(), shape) {
    int64_t elements = 1;
    for (int64_t size : shape) elements *= size;
    if (elements != static_cast<int64_t>(data.size()))
      check(mpiserve_error(MPISERVE_ESHAPE, "the span and the shape differ in elements"));
  }
#endif

#ifdef __cpp_lib_mdspan /* C++23 */
  /* All of an mdspan, whose extents are the shape. argument_error: it is not dense in the order of
   * C, as a part of a larger one or one of layout_left are not. */
  template <class T, class Extents, class Layout>
  tensor(std::mdspan<T, Extents, Layout> data) : tensor(nullptr, data) {}

  template <class T, class Extents, class Layout>
  tensor(const char *name, std::mdspan<T, Extents, Layout> data)
      : tensor(name, const_cast<std::remove_const_t<T> *>(data.data_handle()),
               dtype_of<std::remove_const_t<T>>(), extents_of(data).data(), Extents::rank()) {
    if (!is_dense(data))
      check(mpiserve_error(MPISERVE_ESHAPE, "the mdspan is not dense in the order of C"));
  }
#endif

  const mpiserve_tensor &c() const noexcept { return c_; }

private:
#ifdef __cpp_lib_mdspan
  template <class T, class Extents, class Layout>
  static std::array<int64_t, Extents::rank()>
  extents_of(const std::mdspan<T, Extents, Layout> &data) {
    std::array<int64_t, Extents::rank()> shape{};
    for (size_t i = 0; i < Extents::rank(); i++) shape[i] = static_cast<int64_t>(data.extent(i));
    return shape;
  }

  template <class T, class Extents, class Layout>
  static bool is_dense(const std::mdspan<T, Extents, Layout> &data) {
    bool dense = true;
    if constexpr (Extents::rank() > 0) { /* else there are no strides */
      int64_t elements = 1;              /* in the dimensions behind this one */
      for (size_t i = Extents::rank(); i-- > 0; elements *= static_cast<int64_t>(data.extent(i)))
        dense &= data.extent(i) < 2 || static_cast<int64_t>(data.stride(i)) == elements;
    }
    return dense || data.empty();
  }
#endif

  mpiserve_tensor c_;
};

/* The tensors of one side of a call: one, or a list in braces. */
class tensors {
public:
  tensors(const tensor &one) : c_{one.c()} {}
  tensors(std::initializer_list<tensor> several) {
    for (const tensor &each : several) c_.push_back(each.c());
  }
  int size() const noexcept { return static_cast<int>(c_.size()); }
  const mpiserve_tensor *data() const noexcept { return c_.data(); }

private:
  std::vector<mpiserve_tensor> c_;
};

/* ---- requests ---------------------------------------------------------------------------- */

/* A request under way, like a future. Its destructor cancels it. */
class request {
public:
  request() = default;
  request(mpiserve_session *session, mpiserve_request c) noexcept : session_(session), c_(c) {}
  request(request &&other) noexcept { swap(other); }
  request &operator=(request &&other) noexcept {
    request(std::move(other)).swap(*this);
    return *this;
  }
  ~request() {
    if (c_.id) mpiserve_cancel(session_, &c_);
  }

  /* Is it under way, or has nobody taken its end yet? */
  bool valid() const noexcept { return c_.id != 0; }

  /* Has it ended? Then it is valid no longer, and its outputs hold the result, or get() throws. A
   * request that is not valid has ended. */
  bool done() {
    int ended = 1;
    if (c_.id) end(mpiserve_test(session_, &c_, &ended, &stats_));
    return ended != 0 || !c_.id;
  }

  /* Waits until it has ended, and throws the error that it ended with, each time. timeout_error
   * after so many seconds: it is still valid. */
  const mpiserve_stats &get(double timeout = MPISERVE_FOREVER) {
    if (c_.id) end(mpiserve_wait(session_, &c_, timeout, &stats_));
    if (code_) raise(code_, text_);
    return stats_;
  }

  /* The same as of a future: timeout, and it goes on, or ready, also where get() throws. */
  template <class Rep, class Period>
  std::future_status wait_for(std::chrono::duration<Rep, Period> limit) {
    const double seconds = std::chrono::duration<double>(limit).count();
    if (!c_.id) return std::future_status::ready;
    const int code = mpiserve_wait(session_, &c_, seconds > 0 ? seconds : 0, &stats_);
    if (code == MPISERVE_ETIMEOUT && c_.id) return std::future_status::timeout;
    end(code);
    return std::future_status::ready;
  }

  void cancel() {
    if (c_.id) check(mpiserve_cancel(session_, &c_));
  }

  /* Of the answer; all zero before. */
  const mpiserve_stats &stats() const noexcept { return stats_; }

private:
  void swap(request &other) noexcept {
    std::swap(session_, other.session_);
    std::swap(c_, other.c_);
    std::swap(stats_, other.stats_);
    std::swap(code_, other.code_);
    std::swap(text_, other.text_);
  }

  /* What it ended with is for get(); what the call alone failed with is thrown. */
  void end(int code) {
    if (c_.id) return check(code);
    code_ = code;
    if (code) text_ = mpiserve_last_error();
  }

  mpiserve_session *session_ = nullptr;
  mpiserve_request c_{};
  mpiserve_stats stats_{};
  int code_ = MPISERVE_OK; /* that it ended with, and its text */
  std::string text_;
};

/* ---- services ---------------------------------------------------------------------------- */

/* In-place memory for rows of a service, which its destructor gives back; no request may use it
 * then. Tensors that begin at the same row of it are not copied. */
class buffer {
public:
  buffer(mpiserve_service *service, int64_t rows) : service_(service) {
    check(mpiserve_buffer_take(service, rows, &c_));
  }
  buffer(buffer &&other) noexcept
      : service_(other.service_), c_(std::exchange(other.c_, mpiserve_buffer{})) {}
  buffer &operator=(buffer &&other) noexcept {
    std::swap(service_, other.service_);
    std::swap(c_, other.c_);
    return *this;
  }
  ~buffer() {
    if (c_.id) mpiserve_buffer_give(service_, &c_);
  }

  int64_t rows() const noexcept { return c_.rows; }

  /* Tensor i of the inputs, or outputs, in the order of the signature. */
  template <class T> T *input(int i = 0) const noexcept { return static_cast<T *>(c_.inputs[i]); }
  template <class T> T *output(int i = 0) const noexcept { return static_cast<T *>(c_.outputs[i]); }

private:
  mpiserve_service *service_;
  mpiserve_buffer c_{};
};

/* Requests that follow time steps, by one step() in each: mpiserve_pace_open(). Its destructor
 * cancels what is under way. */
class pace {
public:
  pace(mpiserve_service *service, const mpiserve_pace_options &options) : service_(service) {
    check(mpiserve_pace_open(service, &options, &c_));
  }
  pace(pace &&other) noexcept
      : service_(other.service_), c_(std::exchange(other.c_, mpiserve_pace{})) {}
  pace &operator=(pace &&other) noexcept {
    std::swap(service_, other.service_);
    std::swap(c_, other.c_);
    return *this;
  }
  ~pace() {
    if (c_.id) mpiserve_pace_close(service_, &c_);
  }

  /* timeout_error after so many seconds: the step is not over, call it again. */
  mpiserve_stats step(const tensors &inputs, const tensors &outputs,
                      double timeout = MPISERVE_FOREVER) const {
    mpiserve_stats stats;
    check(mpiserve_pace_step(service_, &c_, inputs.size(), inputs.data(), outputs.size(),
                             outputs.data(), timeout, &stats));
    return stats;
  }

  void restart() const { check(mpiserve_pace_restart(service_, &c_)); }

private:
  mpiserve_service *service_;
  mpiserve_pace c_{};
};

/* A service of an open session, by value. */
class service {
public:
  service(mpiserve_session *session, mpiserve_service *c) noexcept : session_(session), c_(c) {}

  /* Submits a request and waits; timeout_error after so many seconds, and it is cancelled. */
  mpiserve_stats infer(const tensors &inputs, const tensors &outputs,
                       double timeout = MPISERVE_FOREVER) const {
    mpiserve_stats stats;
    check(mpiserve_infer(c_, inputs.size(), inputs.data(), outputs.size(), outputs.data(), timeout,
                         &stats));
    return stats;
  }

  request submit(const tensors &inputs, const tensors &outputs,
                 const mpiserve_options &options = {}) const {
    mpiserve_request made;
    check(mpiserve_submit(c_, inputs.size(), inputs.data(), outputs.size(), outputs.data(),
                          &options, &made));
    return {session_, made};
  }

  buffer take(int64_t rows) const { return {c_, rows}; }
  mpiserve::pace paced(const mpiserve_pace_options &options) const { return {c_, options}; }

  mpiserve_description description() const {
    mpiserve_description found;
    check(mpiserve_service_describe(c_, &found, nullptr, nullptr, nullptr));
    return found;
  }

  /* Of the replica that can serve best: an mpiserve_state. */
  int state() const {
    mpiserve_replica_state found;
    check(mpiserve_service_state_get(session_, description().name, -1, &found));
    return found.state;
  }

  void wait_ready(double timeout = MPISERVE_FOREVER) const {
    check(mpiserve_service_wait_ready(session_, description().name, timeout));
  }

  mpiserve_service *c() const noexcept { return c_; }

private:
  mpiserve_session *session_;
  mpiserve_service *c_;
};

/* ---- sessions ---------------------------------------------------------------------------- */

/* The membership of a simulation rank. The constructor and close() are collective. The destructor
 * closes too; if an exception is on its way, it first tells the other ranks of an error. */
class session {
public:
  explicit session(MPI_Comm world = MPI_COMM_WORLD) {
    check(mpiserve_open(world, MPISERVE_SIMULATION, &c_));
  }
  session(session &&other) noexcept
      : c_(std::exchange(other.c_, nullptr)), exceptions_(other.exceptions_) {}
  session &operator=(session &&other) noexcept {
    std::swap(c_, other.c_);
    std::swap(exceptions_, other.exceptions_);
    return *this;
  }
  ~session() {
    if (c_ && std::uncaught_exceptions() > exceptions_)
      mpiserve_fail(c_, "an exception of C++ has left the scope of the session");
    mpiserve_close(c_);
  }

  /* Whatever is thrown, the session is closed, but for argument_error. */
  void close() { check(mpiserve_close(std::exchange(c_, nullptr))); }
  void close(double timeout) {
    const int code = mpiserve_close_within(c_, timeout);
    if (code != MPISERVE_EARG) c_ = nullptr;
    check(code);
  }

  service find(const std::string &name) const {
    mpiserve_service *found;
    check(mpiserve_service_find(c_, name.c_str(), &found));
    return {c_, found};
  }

  /* The ranks of this role; the session's. */
  MPI_Comm comm() const {
    MPI_Comm found;
    check(mpiserve_comm(c_, &found));
    return found;
  }

  mpiserve_counters counters() const {
    mpiserve_counters found;
    check(mpiserve_counters_get(c_, &found));
    return found;
  }

  void step() const { check(mpiserve_step(c_)); }
  void fail(const std::string &text) const { check(mpiserve_fail(c_, text.c_str())); }

  /* For all other functions of mpiserve.h; nullptr after close(). */
  mpiserve_session *c() const noexcept { return c_; }

private:
  mpiserve_session *c_ = nullptr;
  int exceptions_ = std::uncaught_exceptions();
};

} // namespace mpiserve

#endif
