/* Closing: docs/internals/protocol_model.md says which C function each step stands for.
 *
 * Each client takes the replies to its requests in flight, sends LEAVE to every head that lives and
 * takes those replies. A head stops when every client has left; one that died counts as left. All
 * that live meet in a barrier, and then free their memory. A rank whose limit for closing is over
 * gives up: it skips the barrier and frees no memory that others may use. A client that gives up
 * before a head has answered sends LEAVE there if a slot is free, else it marks its last request;
 * heads wait for clients that live without a limit. Any rank may die at any step, and the others
 * notice it sooner or later.
 *
 * Ranks 0 and 1 are clients, 2 and 3 are heads. The memory is that of the heads. */

#define CLIENTS 2
#define HEADS 2
#define RANKS 4

#define IS_HEAD(r) ((r) >= CLIENTS)

/* A lane: a request, or LEAVE, and its reply. */
mtype = { EMPTY, REQUEST, LEAVE, REPLIED };
typedef lanes_of_client { mtype at[HEADS] = EMPTY };
lanes_of_client lane[CLIENTS];
typedef marks_of_client { bool at[HEADS] };
marks_of_client mark[CLIENTS];

typedef lanes_of_head { bool gone[CLIENTS] };
lanes_of_head inbox[HEADS];
byte remaining[HEADS] = CLIENTS;

bool safe;                     /* from now on nobody dies */
bool dead[RANKS];
bool entered[RANKS];           /* the barrier */
bool away[RANKS];              /* its close is over: it touches nothing any more */
bool freed[HEADS];

/* Every use of a head's memory by a rank. */
#define TOUCH(h) assert(!freed[h])

#ifdef BARRIER_OF_ALL
#define OUT(r) entered[r]
#else
#define OUT(r) (entered[r] || dead[r])
#endif
#define MET (OUT(0) && OUT(1) && OUT(2) && OUT(3))

/* Without LIMIT nobody gives up, so that whoever waits for ever is found. */
#ifdef LIMIT
#define OR_GIVE_UP :: goto give_up
#define OR_PASS_BY :: goto pass_by
#else
#define OR_GIVE_UP
#define OR_PASS_BY
#endif

#ifdef WAITS_FOR_DEAD_HEAD
#define LIVES(h) (1)
#else
#define LIVES(h) (!dead[CLIENTS + (h)])
#endif

/* Sends to a head, and takes the reply; a head that is dead is passed over. */
#define EXCHANGE(h, what) \
  if \
  :: d_step { LIVES(h) -> TOUCH(h); lane[c].at[h] = what }; \
     if \
     :: d_step { lane[c].at[h] == REPLIED -> TOUCH(h); lane[c].at[h] = EMPTY } \
     :: d_step { !LIVES(h) -> lane[c].at[h] = EMPTY } \
     OR_GIVE_UP \
     :: !safe -> goto die \
     fi \
  :: !LIVES(h) \
  OR_GIVE_UP \
  :: !safe -> goto die \
  fi

#ifdef LEFT_UNSAID
#define SAY(h) skip
#else
#define SAY(h) \
  d_step { \
    if \
    :: LIVES(h) && lane[c].at[h] == EMPTY -> TOUCH(h); lane[c].at[h] = LEAVE \
    :: LIVES(h) && lane[c].at[h] != EMPTY -> TOUCH(h); mark[c].at[h] = 1 \
    :: else \
    fi }
#endif

proctype client(byte c) {
  if /* a request in flight when close begins, or not */
  :: EXCHANGE(0, REQUEST)
  :: EXCHANGE(1, REQUEST)
  :: skip
  fi;
  EXCHANGE(0, LEAVE);
  EXCHANGE(1, LEAVE);
#ifndef NO_BARRIER
  entered[c] = 1;
  if
  :: MET
  OR_PASS_BY
  :: !safe -> goto die
  fi;
#endif
  away[c] = 1;
  goto end;
#ifdef LIMIT
give_up:
  skip; /* spin allows no jump to a d_step */
  SAY(0);
  SAY(1);
pass_by: /* it goes on, and touches nothing any more */
  away[c] = 1;
  goto end;
#endif
die:
  dead[c] = 1;
end:
  skip
}

#ifdef LEFT_TWICE
#define COUNT(h, c) inbox[h].gone[c] = 1; remaining[h]--
#else
#define COUNT(h, c) \
  if :: !inbox[h].gone[c] -> inbox[h].gone[c] = 1; remaining[h]-- :: else fi
#endif

#ifdef DEATH_NOT_COUNTED
#define NOTE_DEATH(h, c) d_step { 0 -> skip }
#else
#define NOTE_DEATH(h, c) d_step { dead[c] && !inbox[h].gone[c] -> COUNT(h, c) }
#endif

#define SERVE(h, c) \
  d_step { lane[c].at[h] == REQUEST -> TOUCH(h); lane[c].at[h] = REPLIED }

#define ON_LEAVE(h, c) \
  d_step { lane[c].at[h] == LEAVE -> TOUCH(h); COUNT(h, c); lane[c].at[h] = REPLIED }

#ifdef FREED_WITHOUT_BARRIER
#define MAY_FREE 1
#else
#define MAY_FREE MET
#endif

/* Not before all that came before it was taken. */
#define ON_MARK(h, c) \
  d_step { mark[c].at[h] && !inbox[h].gone[c] && lane[c].at[h] != REQUEST && \
    lane[c].at[h] != LEAVE -> TOUCH(h); COUNT(h, c) }

proctype head(byte h) {
  do
  :: SERVE(h, 0)
  :: SERVE(h, 1)
  :: ON_LEAVE(h, 0)
  :: ON_LEAVE(h, 1)
  :: ON_MARK(h, 0)
  :: ON_MARK(h, 1)
  :: NOTE_DEATH(h, 0)
  :: NOTE_DEATH(h, 1)
  :: remaining[h] == 0 -> break
  :: !safe -> goto die
  od;
  assert(inbox[h].gone[0] && inbox[h].gone[1]);
  entered[CLIENTS + h] = 1;
  if
  :: d_step { MAY_FREE -> freed[h] = 1; away[CLIENTS + h] = 1 }
  OR_GIVE_UP
  :: !safe -> goto die
  fi;
  goto end;
#ifdef LIMIT
give_up: /* what it has not freed the kernel frees with the last process that maps it */
  away[CLIENTS + h] = 1;
#ifdef FREED_AFTER_LIMIT
  freed[h] = 1;
#endif
  goto end;
#endif
die:
  dead[CLIENTS + h] = 1;
end:
  skip
}

/* Deaths come to an end, or a rank that waits for ever could always die. */
active proctype fate() { safe = 1 }

init {
  atomic { run client(0); run client(1); run head(0); run head(1) }
}
