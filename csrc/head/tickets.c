#include "head/tickets.h"

#include "base/error.h"
#include "head/reply.h"

static mpiserve_ticket hold(msi_broker *broker, const msi_entry *member) {
  const msi_port *port = &broker->ports[member->port];
  mpiserve_ticket ticket = {
      .row = member->at, .rows = member->rows, .client = port->clients[member->lane]};
  if (member->answered) return ticket;
  msi_held held = {.entry = *member, .origin = msi_answer_origin(broker)};
  held.entry.at = 0;
  ticket.id = msi_shelf_put(&broker->shelf, &held);
  broker->thread->owed++;
  return ticket;
}

int msi_late_hold(msi_serving *serving, mpiserve_ticket *tickets) {
  msi_broker *broker = serving->current;
  if (!broker->open) return msi_error(MPISERVE_ESTATE, "there is no batch to hold");
  int code = msi_shelf_reserve(&broker->shelf, broker->assembly.n);
  if (code) return code;
  for (uint32_t i = 0; i < broker->assembly.n; i++) {
    tickets[i] = hold(broker, &broker->assembly.members[i]);
    tickets[i].service = (int32_t)(broker - serving->brokers);
  }
  msi_thread_rest(broker->thread);
  msi_broker_settle(broker);
  return MPISERVE_OK;
}

/* Whose ticket it is, and what is held; NULL if it has ended. */
static msi_held *find(const msi_serving *serving, const mpiserve_ticket *ticket,
                      msi_broker **broker) {
  if (ticket->service < 0 || ticket->service >= serving->n) return NULL;
  *broker = &serving->brokers[ticket->service];
  return msi_shelf_find(&(*broker)->shelf, ticket->id);
}

static int no_ticket(void) {
  return msi_error(MPISERVE_ESTATE, "no such ticket: its request has ended");
}

int msi_late_wanted(msi_serving *serving, mpiserve_ticket *ticket, int *wanted) {
  msi_broker *broker;
  const msi_held *held = find(serving, ticket, &broker);
  *wanted = 0;
  if (!held) {
    ticket->id = 0;
    return MPISERVE_OK;
  }
  const msi_entry *entry = &held->entry;
  const msi_slot *slot = msi_port_slot(&broker->ports[entry->port], entry->lane, entry->sequence);
  *wanted = !msi_slot_cancelled(slot);
  return *wanted ? MPISERVE_OK : msi_late_fail(serving, ticket, MPISERVE_ECANCELLED, NULL);
}

int msi_late_reply(msi_serving *serving, mpiserve_ticket *ticket, const void *const *outputs) {
  msi_broker *broker;
  msi_held *held = find(serving, ticket, &broker);
  if (!held) return no_ticket();
  msi_thread_rest(broker->thread);
  int code = msi_answer_member(broker, &held->entry, &held->origin, outputs, msi_now());
  msi_broker_redeem(broker, held);
  ticket->id = 0;
  msi_thread_wake(broker->thread);
  return code;
}

int msi_late_fail(msi_serving *serving, mpiserve_ticket *ticket, int code, const char *text) {
  msi_broker *broker;
  msi_held *held = find(serving, ticket, &broker);
  if (!held) return no_ticket();
  msi_thread_rest(broker->thread);
  int failed = msi_broker_refuse(broker, &held->entry, code, text);
  msi_broker_redeem(broker, held);
  ticket->id = 0;
  msi_thread_wake(broker->thread);
  return failed;
}
