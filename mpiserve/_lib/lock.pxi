"""The lock of a session of mpiserve._lib.core: one thread at a time may enter it."""

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <sched.h>
    #include <stdatomic.h>
    #include <time.h>

    /* held: 1 while a thread is in the library. A thread that leaves hands it over to one that
     * waits: it stays 1, and handed says so. Or a server, which comes back at once, would keep
     * the others out. */
    typedef struct lock {
      atomic_int held, waiting;
      int handed;
      pthread_mutex_t mutex;
      pthread_cond_t turn;
    } lock;

    static int lock_try(lock *l) {
      int free = 0;
      return !atomic_load(&l->waiting) && atomic_compare_exchange_strong(&l->held, &free, 1);
    }

    static int lock_found(lock *l) {
      int free = 0, handed = l->handed;
      l->handed = 0;
      return handed || atomic_compare_exchange_strong(&l->held, &free, 1);
    }

    /* Wait, at most so many seconds, until this thread has it. */
    static int lock_wait(lock *l, double seconds) {
      struct timespec end;
      int found, late = 0;
      clock_gettime(CLOCK_REALTIME, &end);
      end.tv_nsec += (long)(seconds * 1e9);
      end.tv_sec += end.tv_nsec / 1000000000;
      end.tv_nsec %= 1000000000;
      pthread_mutex_lock(&l->mutex);
      atomic_fetch_add(&l->waiting, 1);
      while (!(found = lock_found(l)) && !late)
        late = pthread_cond_timedwait(&l->turn, &l->mutex, &end) == ETIMEDOUT;
      atomic_fetch_sub(&l->waiting, 1);
      pthread_mutex_unlock(&l->mutex);
      return found;
    }

    static void lock_give(lock *l) {
      int free = 0;
      if (!atomic_load(&l->waiting)) {
        atomic_store(&l->held, 0);
        if (!atomic_load(&l->waiting)) return;
        /* One came meanwhile, and may have seen the lock held. */
        if (!atomic_compare_exchange_strong(&l->held, &free, 1)) return;
      }
      pthread_mutex_lock(&l->mutex);
      if (atomic_load(&l->waiting)) {
        l->handed = 1;
        pthread_cond_signal(&l->turn);
      } else {
        atomic_store(&l->held, 0);
      }
      pthread_mutex_unlock(&l->mutex);
    }

    static void lock_init(lock *l) {
      atomic_init(&l->held, 0);
      atomic_init(&l->waiting, 0);
      l->handed = 0;
      pthread_mutex_init(&l->mutex, NULL);
      pthread_cond_init(&l->turn, NULL);
    }

    static double clock_now(void) {
      struct timespec t;
      clock_gettime(CLOCK_MONOTONIC, &t);
      return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }

    static void nap(double seconds) {
      nanosleep(&(struct timespec){0, (long)(seconds * 1e9)}, NULL);
    }
    """
    ctypedef struct lock:
        pass
    void lock_init(lock *)
    bint lock_try(lock *) noexcept nogil
    void lock_give(lock *) noexcept nogil
    bint lock_wait(lock *, double) noexcept nogil
    double clock_now() noexcept nogil
    void nap(double) noexcept nogil
    int sched_yield() noexcept nogil


@cython.no_gc_clear
cdef class Leftover:
    """What a destructor could not give back, because a thread was in the library.

    Destructors run in any thread at any time, and must not wait. What the library may still
    read or write is kept until the next call.
    """

    cdef mpiserve_service *service  # of the buffer, or the pace
    cdef mpiserve_buffer buffer
    cdef mpiserve_pace pace
    cdef mpiserve_request request
    cdef tuple kept

    cdef void give_back(self, mpiserve_session *session) noexcept:
        if self.request.id:
            mpiserve_cancel(session, &self.request)
        elif self.buffer.id:
            mpiserve_buffer_give(self.service, &self.buffer)
        elif self.pace.id:
            mpiserve_pace_close(self.service, &self.pace)


@cython.no_gc_clear
cdef class Handle:
    """A session of the library, and its lock."""

    cdef mpiserve_session *_session
    cdef lock _lock
    cdef bint _busy  # two threads have met here: waits are cut into looks
    cdef bint _closing
    cdef unsigned long _answering  # the thread that runs a fallback, and has the lock; 0: none
    cdef list _leftovers

    @cython.final
    cdef inline int _enter(self) except -1:
        """Take the session for one call. Until it is left, no Python code may run."""
        if forks or not lock_try(&self._lock):
            self._take_slowly()
        if self._session == NULL or self._leftovers is not None:
            self._look_around()
        return 0

    @cython.final
    cdef int _take(self) except -1:
        if forks or not lock_try(&self._lock):
            self._take_slowly()
        return 0

    @cython.final
    cdef int _take_slowly(self) except -1:
        cdef bint taken
        if forks:
            refuse_fork()
        if self._answering and self._answering == <unsigned long>PyThread_get_thread_ident():
            raise errors.from_code(
                errors.Code.ESTATE, "a fallback must not call the session that calls it"
            )
        self._busy = True
        while True:
            with nogil:
                taken = lock_wait(&self._lock, SLICE)
            if taken:
                return 0
            PyErr_CheckSignals()

    @cython.final
    cdef inline int _leave(self, int code) except -1:
        """Let others enter; raise what the call has returned."""
        lock_give(&self._lock)
        return check(code)

    @cython.final
    cdef int _look_around(self) except -1:
        while self._leftovers is not None:
            self._give_back()
        if self._session == NULL:
            lock_give(&self._lock)
            raise errors.from_code(errors.Code.ESTATE, "the session is closed")
        return 0

    @cython.final
    cdef int _give_back(self) except -1:
        cdef Leftover leftover
        cdef list leftovers = self._leftovers
        self._leftovers = None
        for leftover in leftovers if self._session != NULL else ():
            leftover.give_back(self._session)
        # Dropping what they kept may run destructors of all kinds.
        lock_give(&self._lock)
        leftover = leftovers = None
        return self._take()

    @cython.final
    cdef bint _holds(self) noexcept:
        """Whether the library still knows what belongs to the session."""
        return not forks and (self._session != NULL or self._closing)

    @cython.final
    cdef int _drop(self, Leftover leftover) except -1:
        """Give back what a destructor has; it must not wait."""
        if self._session != NULL and lock_try(&self._lock):
            leftover.give_back(self._session)
            lock_give(&self._lock)
            return 0
        if self._leftovers is None:
            self._leftovers = []
        self._leftovers.append(leftover)
        return 0
