/* Requests that a head turns away: docs/internals/protocol_model.md says which C function each step
 * stands for.
 *
 * A client sends two requests to a service that has a replica at each of two heads. A head may
 * suspend the service, and resume it, at any time: it turns away what comes and what waits in its
 * queue, and the client sends it to the other one. A head may die: what it has goes to the other
 * one too, or ends when there is none. The client may cancel; then it closes, which takes all
 * replies and sends LEAVE to each head. */

#define HEADS 2
#define REQUESTS 2
#define SLOTS 1 /* per lane: the second request of a head has to wait */
#define NOBODY 2

mtype = { IDLE, WAITING, FLIGHT, OVER };    /* a request at the client: in a send queue, in a slot */
mtype = { EMPTY, SENT, TAKEN, DONE, AWAY, LEFT }; /* the slot of a lane */

mtype state[REQUESTS] = IDLE;
byte at[REQUESTS];                          /* head */
bool abandoned[REQUESTS];
byte ends[REQUESTS];                        /* for the proof: how often the caller learnt the end */
mtype slot[HEADS] = EMPTY;
byte owner[HEADS] = NOBODY;                 /* request in the slot */
bool suspended[HEADS], dead[HEADS], left[HEADS];
bool closing;
bool safe;                                  /* from now on nobody dies */
byte suspensions[HEADS];                    /* so that they come to an end */

#define OTHER(h) (1 - (h))

#define END(r) \
  state[r] = OVER; \
  if :: !abandoned[r] -> ends[r]++; assert(ends[r] == 1) :: else fi

/* An abandoned request goes nowhere else. */
#ifdef TURNED_AWAY_IS_OVER
#define REROUTE(r) state[r] = OVER
#elif defined(ABANDONED_GOES_ON)
#define REROUTE(r) \
  if \
  :: !dead[OTHER(at[r])] -> state[r] = WAITING; at[r] = OTHER(at[r]) \
  :: else -> END(r) \
  fi
#else
#define REROUTE(r) \
  if \
  :: abandoned[r] -> END(r) \
  :: !abandoned[r] && !dead[OTHER(at[r])] -> state[r] = WAITING; at[r] = OTHER(at[r]) \
  :: else -> END(r) \
  fi
#endif

#define SUBMIT(r, h) \
  d_step { !closing && state[r] == IDLE && !dead[h] -> state[r] = WAITING; at[r] = h }

#define SEND(r) \
  d_step { state[r] == WAITING && !dead[at[r]] && slot[at[r]] == EMPTY -> \
    assert(!abandoned[r]); assert(!left[at[r]]); \
    state[r] = FLIGHT; slot[at[r]] = SENT; owner[at[r]] = r }

/* The head has died: a message to it takes another way. */
#define UNDELIVERABLE(r) \
  d_step { state[r] == WAITING && dead[at[r]] -> REROUTE(r) }

#define TAKE_REPLY(h) \
  d_step { slot[h] == DONE && owner[h] != NOBODY -> END(owner[h]); slot[h] = EMPTY; owner[h] = NOBODY }

#define TAKE_TURNED_AWAY(h) \
  d_step { slot[h] == AWAY -> REROUTE(owner[h]); slot[h] = EMPTY; owner[h] = NOBODY }

#ifdef DEAD_HEAD_FORGOTTEN
#define TAKE_BACK(h) d_step { 0 -> skip }
#else
#define TAKE_BACK(h) \
  d_step { dead[h] && slot[h] != EMPTY -> \
    if :: owner[h] != NOBODY -> REROUTE(owner[h]) :: else fi; \
    slot[h] = EMPTY; owner[h] = NOBODY }
#endif

#define CANCEL(r) \
  d_step { (state[r] == WAITING || state[r] == FLIGHT) && !abandoned[r] -> \
    ends[r]++; assert(ends[r] == 1); abandoned[r] = 1; \
    if :: state[r] == WAITING -> state[r] = OVER :: else fi }

#define AT(r, h) ((state[r] == WAITING || state[r] == FLIGHT) && at[r] == (h))
#define DRAINED(h) (!AT(0, h) && !AT(1, h))
#ifdef DRAINED_ONCE /* each lane once, and not until all of them are empty */
#define MAY_LEAVE(h) DRAINED(h)
#else
#define MAY_LEAVE(h) (DRAINED(0) && DRAINED(1))
#endif

#define LEAVE(h) \
  d_step { closing && !left[h] && !dead[h] && slot[h] == EMPTY && MAY_LEAVE(h) -> \
    left[h] = 1; slot[h] = LEFT }

#define GONE(h) (dead[h] || (left[h] && slot[h] == EMPTY))

active proctype client() {
  do
  :: SUBMIT(0, 0)
  :: SUBMIT(0, 1)
  :: SUBMIT(1, 0)
  :: SUBMIT(1, 1)
  :: SEND(0)
  :: SEND(1)
  :: UNDELIVERABLE(0)
  :: UNDELIVERABLE(1)
  :: TAKE_REPLY(0)
  :: TAKE_REPLY(1)
  :: TAKE_TURNED_AWAY(0)
  :: TAKE_TURNED_AWAY(1)
  :: TAKE_BACK(0)
  :: TAKE_BACK(1)
  :: CANCEL(0)
  :: CANCEL(1)
  :: !closing -> closing = 1
  :: LEAVE(0)
  :: LEAVE(1)
  :: d_step { slot[0] == DONE && owner[0] == NOBODY -> slot[0] = EMPTY }
  :: d_step { slot[1] == DONE && owner[1] == NOBODY -> slot[1] = EMPTY }
  :: closing && GONE(0) && GONE(1) && DRAINED(0) && DRAINED(1) -> break
  od;
  assert(state[0] == IDLE || ends[0] == 1);
  assert(state[1] == IDLE || ends[1] == 1)
}

active [HEADS] proctype head() {
  byte h = _pid - 1;
  do
  :: d_step { slot[h] == SENT && suspended[h] -> slot[h] = AWAY }
  :: d_step { slot[h] == SENT && !suspended[h] -> slot[h] = TAKEN }
  :: d_step { slot[h] == TAKEN -> slot[h] = DONE }
  :: d_step { slot[h] == TAKEN && suspended[h] -> slot[h] = AWAY } /* it waits in the queue */
  :: d_step { slot[h] == LEFT -> slot[h] = DONE }; break
  :: d_step { !suspended[h] && suspensions[h] < 2 -> suspended[h] = 1; suspensions[h]++ }
  :: d_step { suspended[h] -> suspended[h] = 0 }
  :: d_step { !safe -> dead[h] = 1 }; break
  od
}

/* Deaths come to an end, or a rank that waits for ever could always die. */
active proctype fate() { safe = 1 }
