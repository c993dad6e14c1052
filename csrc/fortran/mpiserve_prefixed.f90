!> Module mpiserve with names that begin with mpiserve_, for codes that have their own "input",
!> "output", "session" or "request".
module mpiserve_prefixed
  use mpiserve, &
    mpiserve_session => session, &
    mpiserve_service => service, &
    mpiserve_request => request, &
    mpiserve_pace => pace, &
    mpiserve_request_stats => request_stats, &
    mpiserve_request_options => request_options, &
    mpiserve_service_info => service_info, &
    mpiserve_tensor => tensor, &
    mpiserve_tensor_spec => tensor_spec, &
    mpiserve_buffer => buffer, &
    mpiserve_fallback_function => fallback_function, &
    mpiserve_replica_state => replica_state, &
    mpiserve_input => input, &
    mpiserve_output => output
  implicit none
  public
end module mpiserve_prefixed
