/* Sleeping and waking: docs/internals/protocol_model.md says which C function each step stands for.
 *
 * A sleeper raises its flag, fences, looks once more for the change that it waits for, and sleeps at
 * a futex for a limited time. A waker makes the change, looks at the flag, and if it is up clears it
 * and wakes the sleeper. A waker has no fence: what it stores is pending until it becomes visible,
 * in any order. So a wake-up may be missed in the cases that EXCUSED names, and in no other; then
 * the limit of the sleep ends it.
 *
 * The waker's look at a flag that is up, and its clearing, are one atomic step: a flag may count.
 *
 *   HEAD_SLEEPS  the futex is at the flag; two clients ring their doorbells, and each may wake. Or
 *                the head waits for both, as it does for requests that are to join a batch: it
 *                raises the flag to 2, each client takes 1 away, and the one that clears it wakes
 *   otherwise    a client sleeps at the reply's sequence, and its flag is another word; the head
 *                replies once to each of its requests, which use the same slot
 *
 * A waker may die at any step. */

#ifdef HEAD_SLEEPS
#define WAKERS 2
#define ROUNDS 2
#else
#define WAKERS 1
#define ROUNDS 3
#endif

byte change[WAKERS];        /* the doorbell, or the reply's sequence */
byte flag;                  /* the wakers that are waited for */
bool asleep;                /* in the futex */
byte wanted = 1;            /* wakers that the sleeper waits for */
byte made[WAKERS];          /* changes made; pending while it differs from change */
byte seen[WAKERS];          /* by the sleeper */
bool wakes[WAKERS];         /* it is between a change and the end of its waking */
bool dead[WAKERS];

/* For the proof. */
bool missed[WAKERS];        /* its last look at the flag came before its change was visible */
byte raised;                /* the change that the flag was raised for */
bool cleared;               /* the flag was cleared by the waker of an earlier change */

#define VISIBLE(w) (change[w] == made[w])
#define QUIET(w) (!wakes[w] && VISIBLE(w))
#define ENDED(w) (QUIET(w) && (dead[w] || made[w] == ROUNDS))

#ifdef HEAD_SLEEPS
#define CHANGED (change[0] != seen[0] || change[1] != seen[1])
#define ENOUGH ((change[0] != seen[0]) + (change[1] != seen[1]) >= wanted)
#define SEE seen[0] = change[0]; seen[1] = change[1]
#define WANT if :: wanted = 1 :: wanted = 2 fi
#define WORD_IS_OLD (word && flag == word)
#define MAY_CHANGE(w) (made[w] < ROUNDS)
#define ALL_QUIET (QUIET(0) && QUIET(1))
#define ALL_ENDED (ENDED(0) && ENDED(1))
#define EXCUSED (missed[0] || missed[1] || dead[0] || dead[1])
#else
#define CHANGED (change[0] != seen[0])
#define ENOUGH CHANGED
#define SEE seen[0] = change[0]
#define WANT skip
#define WORD_IS_OLD !CHANGED
#define MAY_CHANGE(w) (made[w] < ROUNDS && made[w] == seen[w])
#define ALL_QUIET QUIET(0)
#define ALL_ENDED ENDED(0)
#define EXCUSED (missed[0] || cleared || dead[0])
#endif

active proctype sleeper() {
  bool raises = 0; /* NO_FENCE: the store is pending */
  byte word;
look:
  if
  :: atomic { CHANGED -> SEE }; goto look
  :: atomic { !CHANGED && ALL_ENDED }; goto end
  :: else
  fi;
  WANT;
#ifdef NO_FENCE
  raises = 1;
#else
  atomic { flag = wanted; raised = seen[0] + 1; cleared = 0 };
#endif
#ifndef NO_SECOND_LOOK
  if
#ifdef RAISED_ONCE
  :: atomic { CHANGED && wanted > 1 -> SEE; wanted-- } /* the flag stays as high as it was */
#endif
  :: atomic { CHANGED -> SEE; flag = 0; raises = 0 }; goto look
  :: else
  fi;
#endif
  if
  :: atomic { raises -> flag = wanted; raises = 0; raised = seen[0] + 1; cleared = 0 }
  :: else
  fi;
  word = flag;
  /* The kernel compares the word and lets the thread sleep in one step. */
  if
  :: atomic { WORD_IS_OLD -> asleep = 1 }
  :: else -> goto look
  fi;
  if
  :: !asleep
  :: atomic { asleep && ALL_ENDED && !ENOUGH -> asleep = 0 } /* nothing more will come */
#ifndef NO_LIMIT
  :: atomic { asleep ->
       assert(!(ALL_QUIET && ENOUGH) || EXCUSED);
       asleep = 0 }
#endif
  fi;
  flag = 0;
  goto look;
end:
  skip
}

#define CHANGE(w) atomic { MAY_CHANGE(w) -> made[w]++; wakes[w] = 1 }
#define BECOME_VISIBLE(w) atomic { !VISIBLE(w) -> change[w]++ }
/* It clears the flag, or takes 1 away; or it is down by now. */
#define CLEAR(w) \
  atomic { \
    up = (flag == 1); \
    if :: flag -> flag-- :: else fi; \
    if :: up && raised > made[0] -> cleared = 1 :: else fi }

proctype waker(byte w) {
  bool up;
next:
  if
#ifdef WAKE_BEFORE_CHANGE
  :: atomic { MAY_CHANGE(w) -> up = flag > 0; missed[w] = 0; wakes[w] = 1 };
     made[w]++
#else
  :: CHANGE(w);
     if
     :: atomic { up = flag > 0; missed[w] = !VISIBLE(w) }
     :: goto die
     fi
#endif
  :: made[w] == ROUNDS -> goto end
  :: goto die
  fi;
  if
  :: up ->
    if
    :: CLEAR(w)
    :: goto die
    fi;
    if
    :: atomic { up && VISIBLE(w) -> asleep = 0; up = 0 } /* the kernel's barrier, and the wake */
    :: !up
    :: goto die
    fi
  :: else
  fi;
  wakes[w] = 0;
  goto next;
die:
  atomic { dead[w] = 1; wakes[w] = 0; up = 0 };
end:
  skip
}

/* What is pending becomes visible, also after the death of who stored it. */
active proctype memory() {
end:
  do
  :: BECOME_VISIBLE(0)
#ifdef HEAD_SLEEPS
  :: BECOME_VISIBLE(1)
#endif
  od
}

init {
  atomic {
    run waker(0);
#ifdef HEAD_SLEEPS
    run waker(1)
#endif
  }
}
