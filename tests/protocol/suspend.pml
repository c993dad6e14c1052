/* Requests that a head turns away: docs/internals/protocol_model.md says which C function each step
 * stands for.
 *
 * A client sends two requests to a service that has a replica at each of two heads. A head may
 * suspend the service, and resume it, at any time: it turns away what comes and what waits in its
 * queue, and the client sends it to the other one. A head may die: what it has goes to the other
 * one too, or ends when there is none. With STOPS a head may stop, and go on, in place of suspending:
 * what it has goes the same way, while its slot stays taken. The client may cancel; then it closes,
 * which takes all replies and sends LEAVE to each head. */

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
bool stopped[HEADS], away[HEADS];           /* the head; what the client knows of it */
bool working[HEADS];                        /* for the proof: the head may write to the slot */
bool closing;
bool safe;                                  /* from now on nobody dies */
byte suspensions[HEADS], stops[HEADS];      /* so that they come to an end */

#ifdef STOPS
#define MOST_SUSPENSIONS 0
#define MOST_STOPS 1
#else
#define MOST_SUSPENSIONS 2
#define MOST_STOPS 0
#endif

#define OTHER(h) (1 - (h))
#define SERVES(h) (!dead[h] && !away[h])

#define END(r) \
  state[r] = OVER; \
  if :: !abandoned[r] -> ends[r]++; assert(ends[r] == 1) :: else fi

/* An abandoned request goes nowhere else. */
#ifdef TURNED_AWAY_IS_OVER
#define REROUTE(r) state[r] = OVER
#elif defined(ABANDONED_GOES_ON)
#define REROUTE(r) \
  if \
  :: SERVES(OTHER(at[r])) -> state[r] = WAITING; at[r] = OTHER(at[r]) \
  :: else -> END(r) \
  fi
#else
#define REROUTE(r) \
  if \
  :: abandoned[r] -> END(r) \
  :: !abandoned[r] && SERVES(OTHER(at[r])) -> state[r] = WAITING; at[r] = OTHER(at[r]) \
  :: else -> END(r) \
  fi
#endif

#define SUBMIT(r, h) \
  d_step { !closing && state[r] == IDLE && !dead[h] -> state[r] = WAITING; at[r] = h }

#define SEND(r) \
  d_step { state[r] == WAITING && !dead[at[r]] && slot[at[r]] == EMPTY -> \
    assert(!abandoned[r]); assert(!left[at[r]]); assert(!working[at[r]]); \
    state[r] = FLIGHT; slot[at[r]] = SENT; owner[at[r]] = r }

/* The head has died, or has stopped: a message to it takes another way. */
#define UNDELIVERABLE(r) \
  d_step { state[r] == WAITING && (dead[at[r]] || away[at[r]]) -> REROUTE(r) }

#define TAKE_REPLY(h) \
  d_step { slot[h] == DONE && owner[h] != NOBODY -> END(owner[h]); slot[h] = EMPTY; owner[h] = NOBODY }

#define TAKE_TURNED_AWAY(h) \
  d_step { slot[h] == AWAY && owner[h] != NOBODY -> \
    REROUTE(owner[h]); slot[h] = EMPTY; owner[h] = NOBODY }

/* The reply to LEAVE, or to what was withdrawn. */
#define TAKE_UNWANTED(h) \
  d_step { (slot[h] == DONE || slot[h] == AWAY) && owner[h] == NOBODY -> slot[h] = EMPTY }

#define NOTICE_STOP(h) \
  d_step { stopped[h] && !dead[h] && !away[h] && (slot[h] == SENT || slot[h] == TAKEN) -> \
    away[h] = 1 }

#define NOTICE_LIFE(h) \
  d_step { !stopped[h] && away[h] -> away[h] = 0 }

/* The head may go on at any time, with what is in the slot. */
#ifdef WITHDRAWN_ENDS_TWICE
#define WITHDRAW(h) \
  d_step { away[h] && owner[h] != NOBODY && (slot[h] == SENT || slot[h] == TAKEN) && \
    state[owner[h]] == FLIGHT -> REROUTE(owner[h]) }
#elif defined(WITHDRAWN_SLOT_IS_FREE)
#define WITHDRAW(h) \
  d_step { away[h] && owner[h] != NOBODY && (slot[h] == SENT || slot[h] == TAKEN) -> \
    REROUTE(owner[h]); owner[h] = NOBODY; slot[h] = EMPTY }
#else
#define WITHDRAW(h) \
  d_step { away[h] && owner[h] != NOBODY && (slot[h] == SENT || slot[h] == TAKEN) -> \
    REROUTE(owner[h]); owner[h] = NOBODY }
#endif

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
  :: TAKE_UNWANTED(0)
  :: TAKE_UNWANTED(1)
  :: NOTICE_STOP(0)
  :: NOTICE_STOP(1)
  :: NOTICE_LIFE(0)
  :: NOTICE_LIFE(1)
  :: WITHDRAW(0)
  :: WITHDRAW(1)
  :: TAKE_BACK(0)
  :: TAKE_BACK(1)
  :: CANCEL(0)
  :: CANCEL(1)
  :: !closing -> closing = 1
  :: LEAVE(0)
  :: LEAVE(1)
  :: closing && GONE(0) && GONE(1) && DRAINED(0) && DRAINED(1) -> break
  od;
  assert(state[0] == IDLE || ends[0] == 1);
  assert(state[1] == IDLE || ends[1] == 1)
}

active [HEADS] proctype head() {
  byte h = _pid - 1;
  do
  :: d_step { !stopped[h] && slot[h] == SENT && suspended[h] -> slot[h] = AWAY }
  :: d_step { !stopped[h] && slot[h] == SENT && !suspended[h] -> slot[h] = TAKEN; working[h] = 1 }
  :: d_step { !stopped[h] && working[h] -> slot[h] = DONE; working[h] = 0 }
  :: d_step { !stopped[h] && working[h] && suspended[h] -> /* it waits in the queue */
       slot[h] = AWAY; working[h] = 0 }
  :: d_step { !stopped[h] && slot[h] == LEFT -> slot[h] = DONE }; break
  :: d_step { !stopped[h] && !suspended[h] && suspensions[h] < MOST_SUSPENSIONS ->
       suspended[h] = 1; suspensions[h]++ }
  :: d_step { !stopped[h] && suspended[h] -> suspended[h] = 0 }
  :: d_step { !stopped[h] && stops[h] < MOST_STOPS -> stopped[h] = 1; stops[h]++ }
  :: d_step { stopped[h] -> stopped[h] = 0 }
  :: d_step { !safe -> dead[h] = 1; stopped[h] = 0; working[h] = 0 }; break
  od
}

/* Deaths come to an end, or a rank that waits for ever could always die. */
active proctype fate() { safe = 1 }
