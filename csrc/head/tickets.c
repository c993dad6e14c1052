#include "head/tickets.h"

#include "base/error.h"
#include "head/reply.h"

static mpiserve_ticket hold(msi_broker *broker, const msi_entry *member) {
  const msi_inbox *inbox = &broker->inboxes[member->inbox];
  mpiserve_ticket ticket = {
      .row = member->at, .rows = member->rows, .client = inbox->clients[member->lane]};
  if (member->answered) return ticket;
  msi_ticket held = {.entry = *member, .origin = msi_reply_origin(broker)};
  held.entry.at = held.entry.keeps = 0; /* its inputs are known no longer */
  ticket.id = msi_ticket_table_put(&broker->tickets, &held);
  broker->progress->unanswered++;
  return ticket;
}

int msi_tickets_hold(msi_serving *serving, mpiserve_ticket *tickets) {
  msi_broker *broker = serving->current;
  if (!broker->open) return msi_error(MPISERVE_ESTATE, "there is no batch to hold");
  int code = msi_ticket_table_reserve(&broker->tickets, broker->assembly.n);
  if (code) return code;
  for (uint32_t i = 0; i < broker->assembly.n; i++) {
    tickets[i] = hold(broker, &broker->assembly.members[i]);
    tickets[i].service = (int32_t)(broker - serving->brokers);
  }
  msi_progress_stop(broker->progress);
  msi_broker_end_batch(broker);
  return MPISERVE_OK;
}

/* Whose ticket it is, and what is held; NULL if it has ended. */
static msi_ticket *find(const msi_serving *serving, const mpiserve_ticket *ticket,
                        msi_broker **broker) {
  if (ticket->service < 0 || ticket->service >= serving->n) return NULL;
  *broker = &serving->brokers[ticket->service];
  return msi_ticket_table_find(&(*broker)->tickets, ticket->id);
}

static int no_ticket(void) {
  return msi_error(MPISERVE_ESTATE, "no such ticket: its request has ended");
}

int msi_tickets_wanted(msi_serving *serving, mpiserve_ticket *ticket, int *wanted) {
  msi_broker *broker;
  const msi_ticket *held = find(serving, ticket, &broker);
  *wanted = 0;
  if (!held) {
    ticket->id = 0;
    return MPISERVE_OK;
  }
  const msi_entry *entry = &held->entry;
  const msi_slot *slot =
      msi_inbox_slot(&broker->inboxes[entry->inbox], entry->lane, entry->sequence);
  *wanted = !msi_slot_cancelled(slot);
  return *wanted ? MPISERVE_OK : msi_tickets_fail(serving, ticket, MPISERVE_ECANCELLED, NULL);
}

int msi_tickets_reply(msi_serving *serving, mpiserve_ticket *ticket, const void *const *outputs) {
  msi_broker *broker;
  msi_ticket *held = find(serving, ticket, &broker);
  if (!held) return no_ticket();
  msi_progress_stop(broker->progress);
  int code = msi_reply_member(broker, &held->entry, &held->origin, outputs, msi_now());
  msi_broker_end_ticket(broker, held);
  ticket->id = 0;
  msi_progress_start(broker->progress);
  return code;
}

int msi_tickets_fail(msi_serving *serving, mpiserve_ticket *ticket, int code, const char *text) {
  msi_broker *broker;
  msi_ticket *held = find(serving, ticket, &broker);
  if (!held) return no_ticket();
  msi_progress_stop(broker->progress);
  int failed = msi_broker_refuse(broker, &held->entry, code, text);
  msi_broker_end_ticket(broker, held);
  ticket->id = 0;
  msi_progress_start(broker->progress);
  return failed;
}
