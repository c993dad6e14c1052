/* Guests, such as gateways: docs/internals/protocol_model.md says which C function each step stands
 * for.
 *
 * A simulation and a guest ask two heads, whose batches are rounds: those hold a request of every
 * simulation rank, and never wait for a guest, whose requests have batches of their own. The
 * simulation may compute for any time before it leaves. When it has left, each head says so, and waits until
 * the guest has left too. The guest asks until both heads have said that, takes the replies to what
 * it has under way, and leaves. Then all that live meet, and free their memory. Any rank may die at
 * any step. With STOPS the guest may stop for ever at any step, and the limits hold that are for
 * this: of a head that waits for guests, of a request, of leaving, and of the meeting.
 *
 * Rank 0 is the simulation, 1 the guest, 2 and 3 are heads. The memory is that of the heads. */

#define HEADS 2
#define SIMULATION 0
#define GUEST 1
#define HEAD(h) (2 + (h))
#define RANKS 4

mtype = { EMPTY, JOIN, REQUEST, LEAVE, REPLIED };
typedef lanes_of_client { mtype at[HEADS] = EMPTY };
lanes_of_client lane[2];
bool mark[HEADS];              /* of the guest, which had no slot to say that it leaves */
bool open[HEADS];              /* for the proof: the guest has a request that has not ended */

typedef lanes_of_head { bool gone[2] };
lanes_of_head inbox[HEADS];
bool parted[HEADS];            /* the state GONE: the guest can read it */

bool safe;                     /* from now on nobody dies */
bool dead[RANKS];
bool stopped;                  /* the guest */
bool entered[RANKS];           /* the meeting */
bool freed[HEADS];

/* Every use of a head's memory by a rank. */
#define TOUCH(h) assert(!freed[h])
#define LIVES(h) (!dead[HEAD(h)])
#define OUT(r) (entered[r] || dead[r])
#define MET (OUT(0) && OUT(1) && OUT(2) && OUT(3))

/* Without STOPS no limit passes, so that whoever waits for ever is found. */
#ifdef STOPS
#define OR_STOP :: goto stops
#define OR_GIVE_UP :: goto give_up
#define OR_END_IT :: GIVE_UP(0) :: GIVE_UP(1)
#else
#define OR_STOP
#define OR_GIVE_UP
#define OR_END_IT
#endif

#if defined(STOPS) && !defined(NO_LIMIT_TO_MEET)
#define OR_PASS_BY :: goto pass_by
#else
#define OR_PASS_BY
#endif

/* ---- the simulation ---- */

#define EXCHANGE(h, what) \
  if \
  :: d_step { LIVES(h) -> TOUCH(h); lane[SIMULATION].at[h] = what }; \
     if \
     :: d_step { lane[SIMULATION].at[h] == REPLIED -> TOUCH(h); lane[SIMULATION].at[h] = EMPTY } \
     :: d_step { !LIVES(h) -> lane[SIMULATION].at[h] = EMPTY } \
     :: !safe -> goto die \
     fi \
  :: !LIVES(h) \
  :: !safe -> goto die \
  fi

#define HAS_ANSWERS (!open[0] && !open[1])

proctype simulation() {
  if /* a request of a round, or none */
  :: EXCHANGE(0, REQUEST)
  :: EXCHANGE(1, REQUEST)
  :: skip
  fi;
  if
  :: 1 -> /* it computes until nobody else can go on: by then the guest must have its answers */
     if
     :: timeout -> assert(stopped || dead[GUEST] || HAS_ANSWERS)
     :: !safe -> goto die
     fi
  :: 1
  fi;
  EXCHANGE(0, LEAVE);
  EXCHANGE(1, LEAVE);
  entered[SIMULATION] = 1;
  if
  :: MET
  OR_PASS_BY
  :: !safe -> goto die
  fi;
pass_by:
  goto over;
die:
  dead[SIMULATION] = 1;
over:
  skip
}

/* ---- the guest ---- */

#define END(h) assert(open[h]); open[h] = 0

/* Its time is over, or its client has gone: the slot stays taken until the head has replied. */
#define GIVE_UP(h) d_step { open[h] -> END(h) }

#ifdef ENDS_TWICE
#define END_AGAIN(h) END(h)
#else
#define END_AGAIN(h) if :: open[h] -> END(h) :: else fi
#endif

#define TAKE_REPLY(h) \
  d_step { lane[GUEST].at[h] == REPLIED -> TOUCH(h); lane[GUEST].at[h] = EMPTY; END_AGAIN(h) }

#define NOTICE_DEAD_HEAD(h) \
  d_step { !LIVES(h) && lane[GUEST].at[h] != EMPTY -> lane[GUEST].at[h] = EMPTY; \
    if :: open[h] -> END(h) :: else fi }

#define ASK(h) \
  d_step { LIVES(h) && lane[GUEST].at[h] == EMPTY && !open[h] -> TOUCH(h); \
    lane[GUEST].at[h] = REQUEST; open[h] = 1 }

/* Waits until its slot is free, or the head dead. */
#define SETTLE(h) \
  do \
  :: TAKE_REPLY(h) \
  :: NOTICE_DEAD_HEAD(h) \
  :: lane[GUEST].at[h] == EMPTY -> break \
  OR_STOP \
  OR_GIVE_UP \
  :: !safe -> goto die \
  od

#define TELL(h, what) \
  SETTLE(h); \
  if \
  :: d_step { LIVES(h) -> TOUCH(h); lane[GUEST].at[h] = what }; SETTLE(h) \
  :: !LIVES(h) \
  OR_STOP \
  :: !safe -> goto die \
  fi

#define SAY(h) \
  d_step { \
    if \
    :: open[h] -> END(h) \
    :: else \
    fi; \
    if \
    :: LIVES(h) && lane[GUEST].at[h] == EMPTY -> TOUCH(h); lane[GUEST].at[h] = LEAVE \
    :: LIVES(h) && lane[GUEST].at[h] != EMPTY -> TOUCH(h); mark[h] = 1 \
    :: else \
    fi }

#define SEES_END(h) (!LIVES(h) || parted[h])

proctype guest() {
  TELL(0, JOIN);
  TELL(1, JOIN);
  do
  :: ASK(0)
  :: ASK(1)
  :: TAKE_REPLY(0)
  :: TAKE_REPLY(1)
  :: NOTICE_DEAD_HEAD(0)
  :: NOTICE_DEAD_HEAD(1)
  OR_END_IT
  :: SEES_END(0) && SEES_END(1) -> break
  :: lane[GUEST].at[0] == EMPTY && lane[GUEST].at[1] == EMPTY -> goto rests
  OR_STOP
  :: !safe -> goto die
  od;
  goto leave;
rests: /* nobody asks it any more */
  if
  :: SEES_END(0) && SEES_END(1)
  OR_STOP
  :: !safe -> goto die
  fi;
leave:
  TELL(0, LEAVE);
  TELL(1, LEAVE);
  assert(!open[0] && !open[1]);
  entered[GUEST] = 1;
  if
  :: MET
  OR_PASS_BY
  OR_STOP
  :: !safe -> goto die
  fi;
  goto over;
#ifdef STOPS
give_up:
  skip; /* spin allows no jump to a d_step */
  SAY(0);
  SAY(1);
pass_by: /* it goes on, and touches nothing any more */
  goto over;
stops:
  stopped = 1;
end_stopped:
  if
  :: !safe -> goto die /* somebody kills it */
  fi;
#endif
die:
  dead[GUEST] = 1;
over:
  skip
}

/* ---- the heads ---- */

#define LEFT(h, c) inbox[h].gone[c] = 1

#ifdef GUEST_IN_ROUND
#define IS_COMPLETE(h) (lane[GUEST].at[h] == REQUEST || inbox[h].gone[GUEST])
#else
#define IS_COMPLETE(h) (1)
#endif

#define ANSWER_ROUND(h) \
  d_step { lane[SIMULATION].at[h] == REQUEST && IS_COMPLETE(h) -> TOUCH(h); \
    lane[SIMULATION].at[h] = REPLIED }

#ifdef GUEST_NEEDS_ROUND
#define MAY_ANSWER(h) (lane[SIMULATION].at[h] == REQUEST || inbox[h].gone[SIMULATION])
#else
#define MAY_ANSWER(h) (1)
#endif

#define ANSWER_GUEST(h) \
  d_step { lane[GUEST].at[h] == REQUEST && MAY_ANSWER(h) -> TOUCH(h); lane[GUEST].at[h] = REPLIED }

#define ON_JOIN(h) \
  d_step { lane[GUEST].at[h] == JOIN -> TOUCH(h); lane[GUEST].at[h] = REPLIED }

#define ON_LEAVE(h, c) \
  d_step { lane[c].at[h] == LEAVE -> TOUCH(h); LEFT(h, c); lane[c].at[h] = REPLIED }

#define ON_MARK(h) \
  d_step { mark[h] && !inbox[h].gone[GUEST] && \
    (lane[GUEST].at[h] == EMPTY || lane[GUEST].at[h] == REPLIED) -> TOUCH(h); LEFT(h, GUEST) }

#ifdef GUEST_DEATH_NOT_COUNTED
#define COUNTS_DEATH(c) ((c) != GUEST)
#else
#define COUNTS_DEATH(c) (1)
#endif

#define NOTE_DEATH(h, c) \
  d_step { dead[c] && !inbox[h].gone[c] && COUNTS_DEATH(c) -> LEFT(h, c) }

#ifdef GUEST_AMONG_REMAINING
#define NONE_REMAIN(h) (inbox[h].gone[SIMULATION] && inbox[h].gone[GUEST])
#else
#define NONE_REMAIN(h) inbox[h].gone[SIMULATION]
#endif

#ifdef GONE_UNSAID
#define TELL_GONE(h) d_step { 0 -> skip }
#else
#define TELL_GONE(h) d_step { NONE_REMAIN(h) && !parted[h] -> TOUCH(h); parted[h] = 1 }
#endif

#ifdef GUEST_NOT_WAITED_FOR
#define IS_OVER(h) NONE_REMAIN(h)
#elif defined(STOPS) && !defined(NO_LIMIT_FOR_GUESTS)
#define IS_OVER(h) (NONE_REMAIN(h) && (inbox[h].gone[GUEST] || parted[h]))
#else
#define IS_OVER(h) (NONE_REMAIN(h) && inbox[h].gone[GUEST])
#endif

#ifdef FREED_WITHOUT_GUEST
#define MAY_FREE (OUT(0) && OUT(2) && OUT(3))
#else
#define MAY_FREE MET
#endif

proctype head(byte h) {
  do
  :: ON_JOIN(h)
  :: ANSWER_ROUND(h)
  :: ANSWER_GUEST(h)
  :: ON_LEAVE(h, SIMULATION)
  :: ON_LEAVE(h, GUEST)
  :: ON_MARK(h)
  :: NOTE_DEATH(h, SIMULATION)
  :: NOTE_DEATH(h, GUEST)
  :: TELL_GONE(h)
  :: IS_OVER(h) -> break
  :: !safe -> goto die
  od;
  entered[HEAD(h)] = 1;
  if
  :: d_step { MAY_FREE -> freed[h] = 1 }
  OR_PASS_BY
  :: !safe -> goto die
  fi;
pass_by: /* what it has not freed the kernel frees with the last process that maps it */
  goto over;
die:
  dead[HEAD(h)] = 1;
over:
  skip
}

/* Deaths come to an end, or a rank that waits for ever could always die. */
active proctype fate() { safe = 1 }

init {
  atomic { run simulation(); run guest(); run head(0); run head(1) }
}
