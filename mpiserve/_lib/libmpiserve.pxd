"""mpiserve.h, as Cython sees it."""

from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t


cdef extern from "mpiserve.h" nogil:
    ctypedef int MPI_Fint
    enum:
        MPISERVE_OK, MPISERVE_EMODEL, MPISERVE_ETIMEOUT, MPISERVE_ECLOSED
        MPISERVE_WAIT, MPISERVE_REJECT
        MPISERVE_INDEPENDENT, MPISERVE_TOGETHER, MPISERVE_NO_ROWS, MPISERVE_RAGGED
        MPISERVE_SIMULATION, MPISERVE_INFERENCE, MPISERVE_GATEWAY, MPISERVE_TRAINER
        MPISERVE_SHARED
        MPISERVE_BFLOAT16, MPISERVE_COMPLEX128
        MPISERVE_LOCAL_SIZE
        MPISERVE_FINITE, MPISERVE_BOUNDS
        MPISERVE_EARG, MPISERVE_STATES, MPISERVE_BUSY
        MPISERVE_MAX_DIMS, MPISERVE_MAX_TENSORS, MPISERVE_OUTPUT_RANGES, MPISERVE_TEXT_SIZE, MPISERVE_NAME_SIZE
    ctypedef struct mpiserve_session:
        pass
    ctypedef struct mpiserve_service:
        pass
    ctypedef struct mpiserve_request:
        uint64_t id
    ctypedef struct mpiserve_options:
        double deadline
        int32_t priority
        int64_t *result_shapes
        uint8_t *trusted
    ctypedef struct mpiserve_spec:
        char name[64]
        int32_t dtype, ndim
        int64_t shape[8]
        int64_t max_shape[8]
        int32_t check
        double min, max
    ctypedef struct mpiserve_tensor:
        const char *name
        void *data
        int32_t dtype, ndim
        int64_t shape[8]
    ctypedef struct mpiserve_description:
        char name[64]
        char engine[64]
        char version[64]
        int32_t n_inputs, n_outputs
        mpiserve_spec inputs[16]
        mpiserve_spec outputs[16]
        int64_t max_batch_rows, max_delay_ns, pool_bytes, max_queue_rows
        double stickiness
        int32_t on_full, rows, allow_empty, reproducible, overwrites, replica, spare, uncertain
        int32_t error
        char error_text[512]
        double local_timeout, cache_step
        int64_t cache_rows
        char local[2048]
    ctypedef struct mpiserve_replica_state:
        int32_t state, replica, rank
        int64_t entered_ns[8]
    ctypedef struct mpiserve_buffer:
        uint64_t id
        int64_t rows
        void *inputs[16]
        void *outputs[16]
    ctypedef struct mpiserve_stats:
        int64_t rows, batch_rows, batch_requests, queue_ns, compute_ns, total_ns
        int64_t generation, source, fallback_rows, local_rows, untrusted_rows, age, extrapolated_rows
    ctypedef struct mpiserve_pace_options:
        int64_t every, lag
        int32_t extrapolate, priority
        double deadline
    ctypedef struct mpiserve_pace:
        uint64_t id
    ctypedef struct mpiserve_counters:
        int64_t requests, rows, errors, batches, batches_in_place
        int64_t closed_by_rows, closed_by_census, closed_by_delay
        int64_t rejected, dropped, cancelled
        int64_t rma_operations, rma_to_simulation, thread_polls, rerouted
        int64_t engine_batches, batch_calls
        int64_t fallbacks, failed_rows, local_answers, untrusted_rows
        int64_t paced_steps, paced_age_sum, paced_age_max
        int64_t cache_lookups, cache_hits, cached_requests
    ctypedef struct mpiserve_batch:
        int64_t rows
        int32_t requests, in_place, service
        const void *inputs[16]
        void *outputs[16]
    ctypedef struct mpiserve_engine:
        void *state
        int (*run)(void *, int64_t, const void *const *, void *const *, char *, size_t) noexcept nogil
        void (*close)(void *) noexcept nogil
        int64_t chunk_rows
        int32_t by_request, in_segment
    ctypedef struct mpiserve_capture:
        void *memory
        int64_t bytes
        int32_t reader, waits, model, untrusted
        int64_t every_batches, every_steps
        double share
        uint64_t seed
    ctypedef struct mpiserve_placement:
        int64_t side, breaker, local_rows, remote_rows, returned_rows, changes, opened
        int64_t local_call_ns, local_row_ns, remote_call_ns, remote_row_ns
    ctypedef struct mpiserve_ticket:
        uint64_t id
        int64_t row, rows
        int32_t client, service
    ctypedef struct mpiserve_change_request:
        int32_t service, what, client
        char version[64]
    ctypedef struct mpiserve_segment:
        void *memory
        int64_t bytes
        int32_t fd
    ctypedef struct mpiserve_range:
        int64_t offset, bytes
    ctypedef struct mpiserve_profile:
        int32_t on, reports
        int64_t run, requests, total_ns, waited_ns
        int64_t stages_ns[11]
        char file[512]
    const char *mpiserve_version()
    const char *mpiserve_mpi_build()
    const char *mpiserve_mpi_runtime()
    const char *mpiserve_last_error()
    int mpiserve_error(int, const char *)
    const char *mpiserve_dtype_name(int)
    int mpiserve_open_f(MPI_Fint, int, mpiserve_session **)
    int mpiserve_open_pair(int, int, int, int (*)(void *) noexcept nogil, void *, mpiserve_session **)
    int mpiserve_open_failed_f(MPI_Fint, int, int, const char *)
    int mpiserve_comm_f(mpiserve_session *, MPI_Fint *)
    int mpiserve_role_of(mpiserve_session *, int, int *)
    int mpiserve_counters_get(mpiserve_session *, mpiserve_counters *)
    int mpiserve_step(mpiserve_session *)
    int mpiserve_profile_get(mpiserve_session *, mpiserve_profile *)
    int mpiserve_fail(mpiserve_session *, const char *)
    int mpiserve_close(mpiserve_session *)
    int mpiserve_close_within(mpiserve_session *, double)
    int mpiserve_lost_get(mpiserve_session *, int *, char *)
    int mpiserve_service_count(mpiserve_session *, int *)
    int mpiserve_service_at(mpiserve_session *, int, mpiserve_service **)
    int mpiserve_service_find(mpiserve_session *, const char *, mpiserve_service **)
    int mpiserve_service_describe(mpiserve_service *, mpiserve_description *, int *, int *, int *)
    int mpiserve_service_state_get(mpiserve_session *, const char *, int, mpiserve_replica_state *)
    int mpiserve_service_wait_ready(mpiserve_session *, const char *, double)
    int mpiserve_state_set(mpiserve_session *, int, int)
    int mpiserve_submit(mpiserve_service *, int, const mpiserve_tensor *, int,
                        const mpiserve_tensor *, const mpiserve_options *, mpiserve_request *)
    int mpiserve_test(mpiserve_session *, mpiserve_request *, int *, mpiserve_stats *)
    int mpiserve_wait(mpiserve_session *, mpiserve_request *, double, mpiserve_stats *)
    int mpiserve_cancel(mpiserve_session *, mpiserve_request *)
    int mpiserve_record(mpiserve_service *, int, const mpiserve_tensor *, int,
                        const mpiserve_tensor *, int *)
    int mpiserve_fallback_set(mpiserve_service *,
                              int (*)(void *, int64_t, const void *const *, void *const *, int,
                                      const char *) noexcept, void *)
    int mpiserve_pace_open(mpiserve_service *, const mpiserve_pace_options *, mpiserve_pace *)
    int mpiserve_pace_step(mpiserve_service *, const mpiserve_pace *, int, const mpiserve_tensor *,
                           int, const mpiserve_tensor *, double, mpiserve_stats *)
    int mpiserve_pace_restart(mpiserve_service *, const mpiserve_pace *)
    int mpiserve_pace_close(mpiserve_service *, mpiserve_pace *)
    int mpiserve_buffer_take(mpiserve_service *, int64_t, mpiserve_buffer *)
    int mpiserve_buffer_give(mpiserve_service *, mpiserve_buffer *)
    int mpiserve_reload(mpiserve_session *, const char *, const char *, double)
    int mpiserve_unload(mpiserve_session *, const char *, double)
    int mpiserve_scale(mpiserve_session *, const char *, int, double)
    int mpiserve_start(mpiserve_session *, const char *, double)
    int mpiserve_publish(mpiserve_session *, int, const mpiserve_description *)
    int mpiserve_batch_next(mpiserve_session *, double, mpiserve_batch *)
    int mpiserve_batch_shapes_get(mpiserve_session *, int64_t *)
    int mpiserve_result_shapes_set(mpiserve_session *, int, int64_t, const int64_t *)
    int mpiserve_batch_reply(mpiserve_session *, const void *const *)
    int mpiserve_batch_reply_rows(mpiserve_session *, int64_t, const void *const *)
    int mpiserve_batch_fail(mpiserve_session *, int, const char *)
    int mpiserve_batch_hold(mpiserve_session *, mpiserve_ticket *)
    int mpiserve_ticket_wanted(mpiserve_session *, mpiserve_ticket *, int *)
    int mpiserve_ticket_reply(mpiserve_session *, mpiserve_ticket *, const void *const *)
    int mpiserve_ticket_fail(mpiserve_session *, mpiserve_ticket *, int, const char *)
    int mpiserve_batch_clients(mpiserve_session *, int32_t *)
    int mpiserve_change_get(mpiserve_session *, mpiserve_change_request *)
    int mpiserve_change_reply(mpiserve_session *, int, int, const char *)
    int mpiserve_suspend(mpiserve_session *, int, int)
    int mpiserve_room_set(mpiserve_session *, int, int)
    int mpiserve_rows_set(mpiserve_session *, int, int)
    int mpiserve_queue_get(mpiserve_session *, int, int64_t *)
    int mpiserve_segment_get(mpiserve_session *, mpiserve_segment *)
    int mpiserve_segment_outputs(mpiserve_session *, const char *, mpiserve_range *, int *)
    int mpiserve_mpi_take(mpiserve_session *)
    int mpiserve_mpi_give(mpiserve_session *)
    int mpiserve_engine_load(const char *, const char *, const mpiserve_description *,
                             mpiserve_engine *)
    void mpiserve_engine_close(mpiserve_engine *)
    int mpiserve_engine_set(mpiserve_session *, int, const mpiserve_engine *)
    int mpiserve_capture_set(mpiserve_session *, int, const mpiserve_capture *)
    int mpiserve_placement_set(mpiserve_session *, int, const mpiserve_placement *)
    int mpiserve_peer_error(mpiserve_session *, int *, int *, char *)
    int mpiserve_irregular_get(mpiserve_session *, int, int64_t *, char *)
    int mpiserve_crowded_get(mpiserve_session *, int, int64_t *, int64_t *)
    int mpiserve_waiting_get(mpiserve_session *, int *, char *)
    int mpiserve_wanted_get(mpiserve_session *, int *)
