/* tickets: the public functions for requests that are answered after their batch. */
#include "error.h"
#include "late.h"
#include "session.h"

int mpiserve_batch_hold(mpiserve_session *session, mpiserve_ticket *tickets) {
  int code = msi_check_serving(session);
  if (code || !tickets) return code ? code : msi_null_argument("tickets");
  return msi_late_hold(&session->serving, tickets);
}

int mpiserve_ticket_wanted(mpiserve_session *session, mpiserve_ticket *ticket, int *wanted) {
  int code = msi_check_serving(session);
  if (code || !ticket) return code ? code : msi_null_argument("ticket");
  return wanted ? msi_late_wanted(&session->serving, ticket, wanted) : msi_null_argument("wanted");
}

int mpiserve_ticket_reply(mpiserve_session *session, mpiserve_ticket *ticket,
                          const void *const *outputs) {
  int code = msi_check_serving(session);
  if (code || !ticket) return code ? code : msi_null_argument("ticket");
  return outputs ? msi_late_reply(&session->serving, ticket, outputs)
                 : msi_null_argument("outputs");
}

int mpiserve_ticket_fail(mpiserve_session *session, mpiserve_ticket *ticket, int code,
                         const char *text) {
  int wrong = msi_check_serving(session);
  if (wrong || !ticket) return wrong ? wrong : msi_null_argument("ticket");
  if (code >= 0) return msi_error(MPISERVE_EARG, "%d is not the code of an error", code);
  return msi_late_fail(&session->serving, ticket, code, text ? text : mpiserve_strerror(code));
}

int mpiserve_poll(mpiserve_session *session) {
  int code = msi_check_serving(session);
  return code ? code : msi_serving_poll(&session->serving);
}
