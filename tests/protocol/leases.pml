/* Leases: docs/internals/protocol_model.md says which C function each step stands for.
 *
 * Two clients ask a head for rows, use them for requests and give them back. Either may die at any
 * step, leave, or call no more and keep what it has. Lanes are two slots and the order in which they
 * are used; the memory is that of slots.pml, whose proof is used here: a message arrives whole, once.
 *
 * The pool has ROWS rows. A range that reaches into the upper half is lent for one request: then the
 * largest request, of ROWS / 2 rows, fits again sooner or later, however the lower half is kept.
 *
 *   otherwise  the first client sends small and large requests, two at a time, and withdraws some
 *   BUFFERS    the second client may keep a row as a buffer, and send it in place
 *   LAZY       clients stop calling at any time, with rows that were lent to them
 *
 * To have fewer states, the second client sends large requests only, one at a time, and with BUFFERS
 * and LAZY the first one too sends one at a time. */

#define SLOTS 2
#define ROWS 4
#define NOBODY 255
#define NO_LEASE 254
#ifdef BUFFERS
#define LEASES 3 /* 0 and 1 serve requests in turn, 2 is a buffer */
#define BUFFER 2
#define STALE (L.stale[0] || L.stale[1] || L.stale[BUFFER])
#else
#define LEASES 2
#define STALE (L.stale[0] || L.stale[1])
#endif

mtype = { IDLE, QUEUED, LEASING, FLIGHT };           /* a call */
mtype = { LEASE, KEEP, INFER, LEAVE };               /* a message */
mtype = { FREE, SENT, WAITS, RUNS, REPLIED, REFUSED }; /* a slot */

typedef slot_type {
  mtype is = FREE;
  mtype kind;
  byte lease, rows, call;
};

typedef lane_type {
  slot_type slot[SLOTS];
  bit next, taken;          /* slot of the next message that the client sends, that the head takes */
  byte rows[LEASES];        /* the client's view of its leases */
  byte users[LEASES];
  bool once[LEASES], stale[LEASES];
  mtype call[2] = IDLE;
  byte wanted[2], held[2];
  bit first;                /* the older call */
  bool dead, away;          /* away: it has left, or calls no more */
  byte begin[LEASES], given[LEASES]; /* the head's view */
  bool gone, left;          /* left: it said so */
};

lane_type lanes[2];
bool safe;                  /* from now on nobody dies, or stops with rows that were lent */
byte owner[ROWS] = NOBODY;  /* lane * LEASES + lease */
byte waiting[2] = NOBODY;   /* lanes whose lease request waits, in the order of arrival */

hidden byte b, f, i, k, l, q, r; /* scratch within a step */

#define L lanes[c]
#define AT_WORK (!L.dead && !L.away)
#define CAN_SEND (L.slot[L.next].is == FREE)
#define ALL_FREE (L.slot[0].is == FREE && L.slot[1].is == FREE)
#define CALLS_NOTHING (L.call[0] == IDLE && L.call[1] == IDLE)

/* ---- the client ---------------------------------------------------------------------------- */

inline send(what, which, n, by) {
  L.slot[L.next].is = SENT; L.slot[L.next].kind = what; L.slot[L.next].lease = which;
  L.slot[L.next].rows = n; L.slot[L.next].call = by;
  L.next = 1 - L.next
}

inline let_go(which) {
  if
  :: which == NO_LEASE
  :: else ->
    L.users[which]--;
    if :: L.users[which] == 0 && L.once[which] -> L.stale[which] = 1 :: else fi
  fi
}

inline end_call(which) {
  L.call[which] = IDLE; L.wanted[which] = 0; L.held[which] = 0;
  if :: which == L.first && L.call[1 - which] != IDLE -> L.first = 1 - which :: else fi
}

#define NEW (L.call[L.first] == IDLE -> L.first : 1 - L.first)
#if defined(BUFFERS) || defined(LAZY)
#define MAY_SUBMIT (AT_WORK && CALLS_NOTHING)
#else
#define MAY_SUBMIT (AT_WORK && L.call[NEW] == IDLE && (c == 0 || CALLS_NOTHING))
#endif

/* n rows from the caller's memory. */
#define SUBMIT(n) \
  d_step { (n == 2 || c == 0) && MAY_SUBMIT -> \
    k = NEW; L.call[k] = QUEUED; L.wanted[k] = n; L.held[k] = NO_LEASE }

#define HOLDS_BUFFER (L.rows[BUFFER] && !L.once[BUFFER] && !L.stale[BUFFER] && !L.users[BUFFER])

/* The rows of the buffer, where they are. */
#define SUBMIT_IN_PLACE \
  d_step { MAY_SUBMIT && HOLDS_BUFFER -> \
    k = NEW; L.call[k] = QUEUED; L.wanted[k] = L.rows[BUFFER]; L.held[k] = BUFFER; \
    L.users[BUFFER]++ }

#define SENDS(k) (L.call[k] == QUEUED || L.call[k] == LEASING)
#define FRONT (SENDS(L.first) -> L.first : 1 - L.first)
#define FITS(l) (!L.users[l] && !L.stale[l] && L.rows[l] >= L.wanted[FRONT])
#define SPARE(l) (!L.users[l] && !L.stale[l])
#define MAY_ASK (!L.once[0] && !L.once[1])
#define READY (AT_WORK && L.call[FRONT] == QUEUED && CAN_SEND && !STALE)

/* The first in the send queue has its rows, or finds some, or asks for some. */
#define STEP \
  d_step { READY && (L.held[FRONT] != NO_LEASE || FITS(0) || FITS(1)) -> \
    k = FRONT; \
    if \
    :: L.held[k] != NO_LEASE -> l = L.held[k] \
    :: L.held[k] == NO_LEASE && FITS(0) -> l = 0; L.users[l]++ \
    :: else -> l = 1; L.users[l]++ \
    fi; \
    L.held[k] = l; L.call[k] = FLIGHT; \
    send(INFER, l, L.wanted[k], k); L.wanted[k] = 0; \
    FREED_EARLY }

#ifdef LEASE_FREED_EARLY /* when the request is sent, not when its reply was taken */
#define FREED_EARLY L.held[k] = NO_LEASE; let_go(l)
#else
#define FREED_EARLY skip
#endif

#define ASK \
  d_step { READY && L.held[FRONT] == NO_LEASE && !FITS(0) && !FITS(1) && \
           (SPARE(0) || SPARE(1)) && MAY_ASK -> \
    k = FRONT; l = (SPARE(0) -> 0 : 1); \
    L.users[l]++; L.held[k] = l; L.call[k] = LEASING; \
    send(LEASE, l, L.wanted[k], k) }

/* Cancelled, or late, before it was sent. */
#define WITHDRAW(k) \
  d_step { c == 0 && AT_WORK && L.call[k] == QUEUED -> let_go(L.held[k]); end_call(k) }

#define TAKE_BUFFER(n) \
  d_step { c == 1 && AT_WORK && CAN_SEND && !L.rows[BUFFER] && !L.users[BUFFER] && !L.stale[BUFFER] -> \
    L.users[BUFFER] = 1; send(KEEP, BUFFER, n, 0) }

#define GIVE_BUFFER \
  d_step { AT_WORK && L.rows[BUFFER] && !L.once[BUFFER] && !L.stale[BUFFER] -> \
    if :: L.users[BUFFER] -> L.once[BUFFER] = 1 :: else -> L.stale[BUFFER] = 1 fi }

#define GIVE_BACK(l) \
  d_step { AT_WORK && L.stale[l] && CAN_SEND -> \
    L.stale[l] = 0; L.once[l] = 0; L.rows[l] = 0; send(LEASE, l, 0, 0) }

#define TAKE_REPLY(s) \
  d_step { AT_WORK && (L.slot[s].is == REPLIED || L.slot[s].is == REFUSED) -> \
    l = L.slot[s].lease; k = L.slot[s].call; \
    if \
    :: L.slot[s].kind == LEASE && L.slot[s].rows && L.slot[s].is == REPLIED -> \
      L.rows[l] = L.given[l]; L.once[l] = L.begin[l] + L.given[l] > ROWS / 2; \
      L.call[k] = QUEUED \
    :: L.slot[s].kind == LEASE && L.slot[s].rows && L.slot[s].is == REFUSED -> \
      L.rows[l] = 0; L.once[l] = 0; let_go(l); end_call(k) \
    :: L.slot[s].kind == KEEP -> \
      L.users[l] = 0; L.rows[l] = (L.slot[s].is == REPLIED -> L.given[l] : 0) \
    :: L.slot[s].kind == INFER -> let_go(L.held[k]); end_call(k) \
    :: L.slot[s].kind == LEAVE -> L.away = 1; forget() \
    :: else \
    fi; \
    L.slot[s].is = FREE; L.slot[s].kind = 0; L.slot[s].lease = 0; L.slot[s].rows = 0; \
    L.slot[s].call = 0 }

/* What only the client knows is of no use any more. */
inline forget() {
  for (l : 0 .. LEASES - 1) {
    L.rows[l] = 0; L.users[l] = 0; L.once[l] = 0; L.stale[l] = 0
  };
  for (k : 0 .. 1) {
    L.call[k] = IDLE; L.wanted[k] = 0; L.held[k] = 0
  };
  L.first = 0; L.next = 0
}

#define IS_IDLE (AT_WORK && CALLS_NOTHING && ALL_FREE && !STALE)
#ifdef LAZY /* it stops calling at any time: it waits for another rank, outside of the library */
#define MAY_STOP (IS_IDLE || (!safe && AT_WORK))
#else
#define MAY_STOP IS_IDLE
#endif

proctype client(byte c) {
  do
  :: SUBMIT(1)
  :: SUBMIT(2)
#ifdef BUFFERS
  :: SUBMIT_IN_PLACE
  :: TAKE_BUFFER(1)
  :: GIVE_BUFFER
  :: GIVE_BACK(BUFFER)
#endif
  :: STEP
  :: ASK
  :: WITHDRAW(0)
  :: WITHDRAW(1)
  :: GIVE_BACK(0)
  :: GIVE_BACK(1)
  :: TAKE_REPLY(0)
  :: TAKE_REPLY(1)
  :: d_step { IS_IDLE -> send(LEAVE, 0, 0, 0) }
  :: d_step { MAY_STOP -> L.away = 1; forget() } /* with the rows that it keeps */
  :: d_step { !safe && AT_WORK -> L.dead = 1; forget() }
  :: !AT_WORK -> break
  od
}

/* ---- the head ------------------------------------------------------------------------------ */

#define RUNS_ON(c, l) ((lanes[c].slot[0].is == RUNS && lanes[c].slot[0].lease == (l)) || \
                       (lanes[c].slot[1].is == RUNS && lanes[c].slot[1].lease == (l)))

/* No request reads or writes rows that others may get. */
inline drop(c, which) {
  assert(!lanes[c].given[which] || !RUNS_ON(c, which));
  for (b : 0 .. ROWS - 1) {
    if :: owner[b] == c * LEASES + which -> owner[b] = NOBODY :: else fi
  }
  lanes[c].given[which] = 0; lanes[c].begin[which] = 0
}

/* First fit: f is where n rows are free, or NOBODY. */
inline find(n) {
  f = NOBODY;
  for (b : 0 .. ROWS - 1) {
    if
    :: f == NOBODY && b + n <= ROWS && owner[b] == NOBODY && owner[b + n - 1] == NOBODY -> f = b
    :: else
    fi
  }
}

inline assign(c, which, n) {
  for (b : f .. f + n - 1) {
    assert(owner[b] == NOBODY); /* never two owners */
    owner[b] = c * LEASES + which
  }
  lanes[c].begin[which] = f; lanes[c].given[which] = n
}

/* In turn, so that a large request is not passed for ever by small ones. */
inline grant() {
  for (i : 0 .. 1) {
    q = waiting[0];
    if
    :: q != NOBODY ->
      k = (lanes[q].slot[0].is == WAITS -> 0 : 1);
      r = lanes[q].slot[k].rows;
      find(r);
      if
      :: f != NOBODY ->
        assign(q, lanes[q].slot[k].lease, r);
        lanes[q].slot[k].is = REPLIED;
        waiting[0] = waiting[1]; waiting[1] = NOBODY
      :: else
      fi
    :: else
    fi
  };
  i = 0 /* a step does not end with a loop */
}

#define NOW(c) lanes[c].slot[lanes[c].taken]

#define TAKE(c) \
  d_step { NOW(c).is == SENT && !lanes[c].gone -> \
    l = NOW(c).lease; \
    if \
    :: NOW(c).kind == LEASE && NOW(c).rows == 0 -> drop(c, l); NOW(c).is = REPLIED; GRANT_AFTER_RETURN \
    :: NOW(c).kind == LEASE && NOW(c).rows -> \
      drop(c, l); NOW(c).is = WAITS; \
      if :: waiting[0] == NOBODY -> waiting[0] = c :: else -> waiting[1] = c fi; \
      grant() \
    :: NOW(c).kind == KEEP -> \
      drop(c, l); find(NOW(c).rows); \
      if \
      :: f != NOBODY && KEPT(f + NOW(c).rows) -> assign(c, l, NOW(c).rows); NOW(c).is = REPLIED \
      :: else -> NOW(c).is = REFUSED \
      fi \
    :: NOW(c).kind == INFER -> \
      assert(NOW(c).rows <= lanes[c].given[l]); \
      NOW(c).is = RUNS \
    :: NOW(c).kind == LEAVE -> \
      drop(c, 0); drop(c, 1); lanes[c].gone = 1; lanes[c].left = 1; NOW(c).is = REPLIED; grant() \
    fi; \
    lanes[c].taken = 1 - lanes[c].taken }

#ifdef RETURN_GRANTS_NOTHING
#define GRANT_AFTER_RETURN skip
#else
#define GRANT_AFTER_RETURN grant()
#endif

#ifdef BUFFER_ANYWHERE /* buffers may lie in the upper half too */
#define KEPT(end) (1)
#else
#define KEPT(end) ((end) <= ROWS / 2)
#endif

#define OWNS(c, row, l) (owner[row] == (c) * LEASES + (l))

/* The rows have been the request's all the time. */
#define ANSWER(c, s) \
  d_step { lanes[c].slot[s].is == RUNS -> \
    l = lanes[c].slot[s].lease; f = lanes[c].begin[l]; \
    assert(OWNS(c, f, l) && OWNS(c, f + lanes[c].slot[s].rows - 1, l)); \
    lanes[c].slot[s].is = REPLIED; \
    if :: lanes[c].gone && lanes[c].dead && !RUNNING(c) -> drop_all(c); grant() :: else fi }

#define RUNNING(c) (lanes[c].slot[0].is == RUNS || lanes[c].slot[1].is == RUNS)

inline drop_all(c) {
  for (l : 0 .. LEASES - 1) { drop(c, l) };
  l = 0
}

/* Rows that a batch reads, or a held request, are freed when that has ended. */
#ifdef FREED_WHILE_READ
#define MAY_DROP(c) 1
#else
#define MAY_DROP(c) (!RUNNING(c))
#endif

#ifdef DEAD_KEEP_ROWS
#define NOTE_DEATH(c) d_step { 0 -> skip }
#else
#define NOTE_DEATH(c) \
  d_step { lanes[c].dead && !lanes[c].gone -> \
    lanes[c].gone = 1; \
    if \
    :: waiting[0] == c -> waiting[0] = waiting[1]; waiting[1] = NOBODY \
    :: waiting[1] == c -> waiting[1] = NOBODY \
    :: else \
    fi; \
    if :: MAY_DROP(c) -> drop_all(c) :: else fi; \
    grant() }
#endif

/* After 10 s; not needed but for clients that stop calling with rows that were lent. */
#define REFUSE_LATE \
  d_step { waiting[0] != NOBODY -> \
    q = waiting[0]; k = (lanes[q].slot[0].is == WAITS -> 0 : 1); \
    lanes[q].slot[k].is = REFUSED; \
    waiting[0] = waiting[1]; waiting[1] = NOBODY; \
    grant() }

#define OVER(c) (lanes[c].dead || lanes[c].away)
#define DEAD_OWNS(c, row) (lanes[c].dead && !lanes[c].left && owner[row] != NOBODY && owner[row] / LEASES == (c))
#define DEAD_OWN(row) (DEAD_OWNS(0, row) || DEAD_OWNS(1, row))

active proctype head() {
  run client(0);
  run client(1);
  do
  :: TAKE(0)
  :: TAKE(1)
  :: ANSWER(0, 0)
  :: ANSWER(0, 1)
  :: ANSWER(1, 0)
  :: ANSWER(1, 1)
  :: NOTE_DEATH(0)
  :: NOTE_DEATH(1)
#if defined(LAZY) && !defined(NEVER_REFUSED)
  :: REFUSE_LATE
#endif
  :: timeout -> /* nothing can happen any more */
    assert(OVER(0) && OVER(1)); /* nobody waits for ever */
    assert(!DEAD_OWN(0) && !DEAD_OWN(1) && !DEAD_OWN(2) && !DEAD_OWN(3));
    break
  od
}

/* Deaths come to an end, or a rank that waits for ever could always die. */
active proctype fate() { safe = 1 }
