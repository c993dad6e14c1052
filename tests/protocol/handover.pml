/* The hand-over of batches to a child process: docs/internals/protocol_model.md says which C
 * function each step stands for.
 *
 * A parent posts BATCHES batches to its child, one after the other. The child takes each, may report
 * rows that are done, and ends it. The child may die at any step, and the parent may find it late
 * and kill it; then the parent starts another child with new memory, and posts the batch once more
 * if the one before had not taken it. There are CHILDREN children at most.
 *
 * What a side stores is pending until it becomes visible, in any order, but a release waits for the
 * stores before it; a fence waits for all. A side reads its own stores. When the kernel says that a
 * process has ended, all that it stored is visible. */

#define BATCHES 3
#define CHILDREN 3

#define WORD(x) byte x, x##_stored
#define PENDING(x) (x != x##_stored)

/* The parent's half: how many calls there are, and the call. */
WORD(request); WORD(call); WORD(parent_flag);
/* The child's half: rises with each report and each end, and is odd after an end; the result, as
 * the number of its call, and for the early rows of it; the last call that it took; rows done. */
WORD(news); WORD(result); WORD(early); WORD(taken); WORD(rows); WORD(child_flag);
#ifdef SEPARATE_END
WORD(ended); /* the last call that has ended: a word of its own, which news orders */
#define ENDED_SHOWN !PENDING(ended)
#else
#define ENDED_SHOWN 1
#endif

bool parent_sleeps, child_sleeps; /* in the futex */
bool parent_wakes, child_wakes;   /* between a change and the end of its waking */
bool killed, dead;                /* dead: as the kernel says */

/* For the proof. */
byte serial;         /* of the posts */
bool began;          /* the model has begun the call that was posted last */
bool answered;       /* its end was stored */

#define PARENT_QUIET (!parent_wakes && !PENDING(request) && !PENDING(parent_flag))
#define CHILD_QUIET (!child_wakes && !PENDING(news) && !PENDING(child_flag))
#define CHILD_STORED \
  (ENDED_SHOWN && !PENDING(news) && !PENDING(result) && !PENDING(early) && !PENDING(taken) && \
   !PENDING(rows) && !PENDING(child_flag))
#define PARENT_STORED (!PENDING(request) && !PENDING(call) && !PENDING(parent_flag))

#ifdef NEWS_RELAXED
#define NEWS_MAY_SHOW 1
#else
#define NEWS_MAY_SHOW \
  (ENDED_SHOWN && !PENDING(result) && !PENDING(early) && !PENDING(taken) && !PENDING(rows))
#endif
#ifdef REQUEST_RELAXED
#define REQUEST_MAY_SHOW 1
#else
#define REQUEST_MAY_SHOW (!PENDING(call))
#endif

#ifdef NO_FENCE
#define PARENT_FENCE skip
#define CHILD_FENCE skip
#else
#define PARENT_FENCE PARENT_STORED
#define CHILD_FENCE CHILD_STORED
#endif

/* ---- the child */

#define REPORT \
  d_step { early_stored = call_taken; rows_stored = 1 }
#define TELL(value) \
  d_step { news_stored = value; child_wakes = 1 }
#define STORE_RESULT \
  d_step { result_stored = call_taken }
#define END_CALL(value) \
  d_step { news_stored = value; child_wakes = 1; answered = 1 }
#define TAKE \
  d_step { mine++; taken_stored = mine; rows_stored = 0 }
#define BEGIN \
  d_step { call_taken = call; assert(call_taken == serial); began = 1 }
#define WAKE_PARENT \
  d_step { \
    if :: parent_flag -> parent_sleeps = 0 :: else fi; \
    child_wakes = 0 }
#define CHILD_SLEEPS \
  d_step { request == mine -> child_sleeps = 1 }
#define CHILD_WAKES_UP \
  d_step { child_sleeps -> \
    assert(!(PARENT_QUIET && request != mine)); /* the wake-up is not lost */ \
    child_sleeps = 0 }

proctype child() {
  byte mine, my_news, call_taken;
  { skip;
next:
    if
    :: request != mine -> goto take
    :: request == mine
    fi;
    child_flag_stored = 1;
    CHILD_FENCE;
    if
    :: CHILD_SLEEPS;
       if
       :: !child_sleeps
       :: CHILD_WAKES_UP /* by the limit */
       fi
    :: request != mine
    fi;
    child_flag_stored = 0;
    goto next;
take:
  skip;
#ifdef TAKEN_LATE
    BEGIN;
    TAKE;
#else
    TAKE;
    BEGIN;
#endif
    if
    :: /* rows are done early */
#ifdef ROWS_AFTER_NEWS
       my_news = (my_news | 1) + 1;
       TELL(my_news);
       CHILD_FENCE;
       REPORT;
#else
       REPORT;
       my_news = (my_news | 1) + 1;
       TELL(my_news);
       CHILD_FENCE;
#endif
       WAKE_PARENT
    :: skip
    fi;
#ifdef SEPARATE_END
    ended_stored = mine;
#endif
    my_news = (my_news + 1) | 1;
#ifdef RESULT_AFTER_NEWS
    END_CALL(my_news);
    STORE_RESULT;
#else
    STORE_RESULT;
    END_CALL(my_news);
#endif
    CHILD_FENCE;
    WAKE_PARENT;
    goto next
  } unless { killed };
  d_step { CHILD_STORED -> dead = 1; child_sleeps = 0; child_wakes = 0 }
}

/* ---- the parent */

#define POST \
  d_step { serial++; posted++; call_stored = serial; began = 0; answered = 0 }
#define RING \
  d_step { request_stored = posted; parent_wakes = 1 }
#define WAKE_CHILD \
  d_step { \
    if :: child_flag -> child_sleeps = 0 :: else fi; \
    parent_wakes = 0 }
#define PARENT_SLEEPS \
  d_step { news == seen -> parent_sleeps = 1 }
#define PARENT_WAKES_UP \
  d_step { parent_sleeps -> \
    assert(killed || !(CHILD_QUIET && news != seen)); /* the wake-up is not lost */ \
    parent_sleeps = 0 }
#define EARLY_ROWS \
  d_step { if :: rows > 0 -> assert(early == serial) :: else fi }
#define ENDED \
  d_step { assert(result == serial); batch++; again = 1 }
#define LOST \
  d_step { \
    assert(!untaken || !began); /* what is run again was not begun */ \
    if :: untaken && again -> again = 0 :: else -> batch++; again = 1 fi }
#define NEW_CHILD \
  d_step { \
    request = 0; request_stored = 0; call = 0; call_stored = 0; \
    parent_flag = 0; parent_flag_stored = 0; news = 0; news_stored = 0; \
    result = 0; result_stored = 0; early = 0; early_stored = 0; taken = 0; taken_stored = 0; \
    rows = 0; rows_stored = 0; child_flag = 0; child_flag_stored = 0; RESET_ENDED; \
    killed = 0; dead = 0 }
#ifdef SEPARATE_END
#define RESET_ENDED ended = 0; ended_stored = 0
#define HAS_ENDED (ended == posted)
#else
#define RESET_ENDED skip
#define HAS_ENDED (seen % 2)
#endif

active proctype parent() {
  byte posted, seen, batch, children, found;
  bool gone, untaken, again = 1;
start:
  skip;
#ifdef OLD_MEMORY
  if :: children == 0 -> NEW_CHILD :: else -> killed = 0; dead = 0 fi;
#else
  NEW_CHILD;
#endif
  d_step { posted = 0; seen = 0; children++ };
  run child();
next:
  if :: batch == BATCHES -> goto end :: else fi;
#ifdef CALL_AFTER_REQUEST
  d_step { serial++; posted++; began = 0; answered = 0 };
  RING;
  call_stored = serial;
#else
  POST;
  RING;
#endif
  PARENT_FENCE;
  WAKE_CHILD;
  gone = 0;
look:
  found = news;
  if
  :: found != seen ->
    seen = found;
    if
    :: HAS_ENDED -> ENDED; goto next
    :: else -> EARLY_ROWS; goto look
    fi
  :: else
  fi;
  if
  :: gone -> assert(!answered); goto lost
  :: !gone -> goto late
  :: !gone
  fi;
  parent_flag_stored = 1;
  PARENT_FENCE;
  if
  :: PARENT_SLEEPS;
     if
     :: !parent_sleeps
#ifndef NO_LIMIT
     :: PARENT_WAKES_UP /* by the limit */
#endif
     fi
  :: news != seen
  fi;
  parent_flag_stored = 0;
  gone = dead;
#ifdef NO_LAST_LOOK
  if :: gone -> assert(!answered); goto lost :: else fi;
#endif
  goto look;
late:
#ifdef TAKEN_READ_EARLY
  untaken = (taken != posted);
#endif
  killed = 1;
  dead;
#ifdef TAKEN_READ_EARLY
  goto counted;
#endif
lost:
  untaken = (taken != posted);
counted:
  skip;
  LOST;
  if
  :: children < CHILDREN -> goto start
  :: else
  fi;
end:
  killed = 1
}

/* A child may die by itself at any step. */
#define DIE \
  atomic { !killed -> killed = 1 }
active proctype death() {
end:
  do
  :: DIE
  od
}

#define SHOW(x) \
  atomic { PENDING(x) -> x = x##_stored }
active proctype memory() {
end:
  do
  :: SHOW(call)
  :: atomic { PENDING(request) && REQUEST_MAY_SHOW -> request = request_stored }
  :: SHOW(parent_flag)
  :: SHOW(result)
  :: SHOW(early)
  :: SHOW(taken)
  :: SHOW(rows)
  :: SHOW(child_flag)
  :: atomic { PENDING(news) && NEWS_MAY_SHOW -> news = news_stored }
#ifdef SEPARATE_END
  :: SHOW(ended)
#endif
  od
}
