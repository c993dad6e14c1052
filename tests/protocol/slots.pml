/* Slots and doorbells: docs/internals/protocol_model.md says which C function each step stands for.
 *
 * Two clients send requests to a head, each through a lane of SLOTS slots, for as long as they like;
 * any of the three may die at any step. Sequence numbers and doorbells count modulo WRAP. What a
 * request carries is its number, and so is its result: whoever reads memory that is not complete,
 * or that belongs to another request of the slot, sees a wrong number.
 *
 * Memory is weak: a store is pending until it becomes visible, and pending stores of a rank become
 * visible in any order, but for a release, which waits for those before it. A request, or a reply,
 * is issued in one step, since nobody sees anything of it before its stores are visible. What is
 * pending when a rank dies is lost, or becomes visible.
 *
 * ONE_CLIENT is one client to which all this may happen. With two, which share nothing but the
 * head, stores are pending in the first lane, requests are given up in the second one, and no model
 * fails.
 *
 * To have fewer states, what nobody will read any more becomes OLD, or 0. */

#define CLIENTS 2
#define SLOTS 2
#define WRAP 4
#define OLD WRAP /* no number */
#ifdef ONE_CLIENT
#define WEAK(c) (1)
#define GIVES_UP(c) (1)
#define FAILS (1)
#else
#define WEAK(c) (c == 0)
#define GIVES_UP(c) (c == 1)
#define FAILS (0)
#endif

#define NEXT(n) (((n) + 1) % WRAP)
#define SLOT(n) (((n) + WRAP - 1) % SLOTS)
/* The latest of the numbers up to n that uses slot s. */
#define LATEST(n, s) (SLOT(n) == (s) -> (n) : ((n) + WRAP - 1) % WRAP)

mtype = { CLIENT, HEAD };                /* who owns a slot */
mtype = { NONE, QUEUED, RUNNING };       /* a slot, as the head sees it */
mtype = { RESULT, FAILED, CANCELLED };   /* code of a reply */

typedef lane_memory {
  byte doorbell;
  byte payload[SLOTS], header[SLOTS];    /* the client writes these */
  bool cancelled[SLOTS];
  byte result[SLOTS], about[SLOTS];      /* the head writes these: payload, header, sequence */
  mtype code[SLOTS];
  byte sequence[SLOTS];
};

typedef client_state {
  byte sent;
  bool taken[SLOTS], abandoned[SLOTS];
  bool waits[SLOTS];                     /* for the proof: a caller waits for its end */
  bool p_payload[SLOTS], p_header[SLOTS]; /* pending stores; the doorbell's: doorbell != sent */
  bool dead, left;
};

typedef head_state {                     /* of one lane */
  byte taken;
  mtype slot[SLOTS] = NONE;
  mtype code[SLOTS];                     /* of the pending reply */
  bool p_result[SLOTS], p_about[SLOTS], p_sequence[SLOTS];
  bool gone;
};

lane_memory memory[CLIENTS];
client_state clients[CLIENTS];
head_state lanes[CLIENTS];
mtype owner0[SLOTS] = CLIENT, owner1[SLOTS] = CLIENT; /* for the proof */
bool head_dead;
bool safe;                               /* from now on nobody dies */

hidden byte n, s; /* scratch within a step */


#define M memory[c]
#define C clients[c]
#define H lanes[c]
#define OWNER(s) (c == 0 -> owner0[s] : owner1[s])
#define OWN(s, who) if :: c == 0 -> owner0[s] = who :: else -> owner1[s] = who fi
#define MINE(s) LATEST(C.sent, s)
#define ITS(s) LATEST(H.taken, s)

#define ENDED(c) (clients[c].left || lanes[c].gone)
#define FINISHED (head_dead || (ENDED(0) && ENDED(1)))

/* ---- the client ---------------------------------------------------------------------------- */

#define AT_WORK (!C.dead && !C.left)
#if defined(NO_SLOT_LIMIT) /* rings further ahead than there are slots */
#define CAN_SEND (1)
#elif defined(SLOT_REUSED) /* as soon as the reply is there, though nobody has read it */
#define CAN_SEND (!C.taken[SLOT(NEXT(C.sent))] || \
                  M.sequence[SLOT(NEXT(C.sent))] == MINE(SLOT(NEXT(C.sent))))
#else
#define CAN_SEND (!C.taken[SLOT(NEXT(C.sent))])
#endif

#if defined(DOORBELL_RELAXED)
#define BEFORE_DOORBELL (1)
#elif defined(HEADER_AFTER_DOORBELL)
#define BEFORE_DOORBELL (!C.p_payload[SLOT(NEXT(M.doorbell))])
#else
#define BEFORE_DOORBELL (!C.p_payload[SLOT(NEXT(M.doorbell))] && \
                         !C.p_header[SLOT(NEXT(M.doorbell))])
#endif

#define SEND \
  d_step { AT_WORK && !head_dead && CAN_SEND -> \
    n = NEXT(C.sent); s = SLOT(n); \
    assert(!C.waits[s]); /* else the end of the request before is lost */ \
    C.waits[s] = 1; C.taken[s] = 1; C.abandoned[s] = 0; \
    C.sent = n; \
    if \
    :: WEAK(c) -> C.p_payload[s] = 1; C.p_header[s] = 1 \
    :: else -> M.payload[s] = n; M.header[s] = n; M.doorbell = n; OWN(s, HEAD) \
    fi }

#ifdef CANCELLED_KEPT
#define CLEAR_CANCELLED(s) skip
#else
#define CLEAR_CANCELLED(s) M.cancelled[s] = 0 /* in C when the slot is used next */
#endif

#define STORE_PAYLOAD(s) \
  d_step { C.p_payload[s] -> \
    assert(OWNER(s) == CLIENT); \
    M.payload[s] = MINE(s); C.p_payload[s] = 0 }

#define STORE_HEADER(s) \
  d_step { C.p_header[s] -> \
    assert(OWNER(s) == CLIENT); \
    M.header[s] = MINE(s); C.p_header[s] = 0 }

#define STORE_DOORBELL \
  d_step { M.doorbell != C.sent && BEFORE_DOORBELL -> \
    M.doorbell = NEXT(M.doorbell); OWN(SLOT(M.doorbell), HEAD) }

/* The caller learns the end of its request here, unless it has given it up. */
#define TAKE_REPLY(s) \
  d_step { AT_WORK && C.taken[s] && M.sequence[s] == MINE(s) -> \
    if \
    :: C.abandoned[s] \
    :: else -> \
      assert(C.waits[s]); \
      assert(M.about[s] == MINE(s)); \
      assert(M.code[s] != CANCELLED); \
      assert(M.code[s] == FAILED || M.result[s] == MINE(s)); \
      C.waits[s] = 0 \
    fi; \
    C.taken[s] = 0; C.abandoned[s] = 0; \
    M.result[s] = OLD; M.about[s] = OLD; M.code[s] = 0; CLEAR_CANCELLED(s) }

/* Cancelled, or its deadline has passed: the caller's request ends; the slot stays taken. */
#define GIVE_UP(s) \
  d_step { GIVES_UP(c) && AT_WORK && C.taken[s] && !C.abandoned[s] -> \
    assert(C.waits[s]); \
    C.waits[s] = 0; C.abandoned[s] = 1; M.cancelled[s] = 1 }

inline forget(s) {
  C.waits[s] = 0; C.taken[s] = 0; C.abandoned[s] = 0; C.p_payload[s] = 0; C.p_header[s] = 0
}

inline wipe(s) {
  M.payload[s] = OLD; M.header[s] = OLD; M.cancelled[s] = 0;
  M.result[s] = OLD; M.about[s] = OLD; M.code[s] = 0; M.sequence[s] = 0;
  H.slot[s] = NONE; H.code[s] = 0; H.p_result[s] = 0; H.p_about[s] = 0; H.p_sequence[s] = 0;
  OWN(s, CLIENT)
}

/* The lane is not used any more. */
inline wipe_lane() {
  wipe(0); wipe(1); M.doorbell = 0; C.sent = 0; H.taken = 0
}

/* Every request that goes on ends as one whose peer is dead. */
#define NOTICE_DEAD_HEAD \
  d_step { AT_WORK && head_dead -> forget(0); forget(1); wipe_lane(); C.left = 1 }

#define LEAVE \
  d_step { AT_WORK && !C.taken[0] && !C.taken[1] -> wipe_lane(); C.left = 1 }

/* It learns nothing any more. */
inline bury(s) {
  M.result[s] = OLD; M.about[s] = OLD; M.code[s] = 0;
  forget(s)
}

#define DIE_AND_LOSE \
  d_step { !safe && AT_WORK -> C.dead = 1; C.sent = M.doorbell; bury(0); bury(1) }

#define BECOMES(s) \
  if :: C.p_payload[s] -> M.payload[s] = MINE(s) :: else fi; \
  if :: C.p_header[s] -> M.header[s] = MINE(s) :: else fi; \
  if :: M.doorbell != C.sent && SLOT(NEXT(M.doorbell)) == s -> \
    M.doorbell = NEXT(M.doorbell); OWN(s, HEAD) :: else fi

#define DIE_AND_SHOW \
  d_step { !safe && AT_WORK && M.doorbell != C.sent -> \
    if \
    :: SLOT(NEXT(M.doorbell)) == 0 -> BECOMES(0); BECOMES(1) \
    :: else -> BECOMES(1); BECOMES(0) \
    fi; \
    C.dead = 1; bury(0); bury(1) }

proctype client(byte c) {
  do
  :: SEND
  :: STORE_PAYLOAD(0)
  :: STORE_PAYLOAD(1)
  :: STORE_HEADER(0)
  :: STORE_HEADER(1)
  :: STORE_DOORBELL
  :: TAKE_REPLY(0)
  :: TAKE_REPLY(1)
  :: GIVE_UP(0)
  :: GIVE_UP(1)
  :: NOTICE_DEAD_HEAD
  :: LEAVE
  :: DIE_AND_LOSE
  :: DIE_AND_SHOW
  :: !AT_WORK && FINISHED -> break
  od
}

/* ---- the head ------------------------------------------------------------------------------ */

#ifdef OPEN_SLOT_TAKEN
#define RUNG(c) (memory[c].doorbell != lanes[c].taken)
#else
#define RUNG(c) (memory[c].doorbell != lanes[c].taken && \
                 lanes[c].slot[SLOT(NEXT(lanes[c].taken))] == NONE)
#endif

#ifdef SEEN_IS_DOORBELL /* takes one request, and notes the doorbell as it is now */
#define TAKEN(c) memory[c].doorbell
#else
#define TAKEN(c) n
#endif

#ifdef ACQUIRE_DROPPED /* the header is loaded before the doorbell */
byte early0[SLOTS], early1[SLOTS];
#define LOAD_EARLY(s) \
  d_step { !head_dead && early0[s] != memory[0].header[s] -> early0[s] = memory[0].header[s] }
#define HEADER(c, s) (c == 0 -> early0[s] : memory[c].header[s])
#else
#define HEADER(c, s) memory[c].header[s]
#endif

#define TAKE(c) \
  d_step { !head_dead && RUNG(c) -> \
    n = NEXT(lanes[c].taken); s = SLOT(n); \
    assert(HEADER(c, s) == n); /* nothing is lost, doubled or reordered */ \
    assert(lanes[c].slot[s] == NONE); \
    lanes[c].slot[s] = QUEUED; lanes[c].taken = TAKEN(c) }

#ifdef OVERTAKES
#define FIRST(c, s) (1)
#else
#define FIRST(c, s) !(lanes[c].slot[1 - s] == QUEUED && SLOT(lanes[c].taken) == s)
#endif

/* The request joins a batch: its payload is read. */
#define BEGIN(c, s) \
  d_step { !head_dead && lanes[c].slot[s] == QUEUED && FIRST(c, s) -> \
    assert(!(lanes[c].slot[1 - s] == QUEUED && SLOT(lanes[c].taken) == s)); \
    assert(memory[c].payload[s] == LATEST(lanes[c].taken, s)); \
    lanes[c].slot[s] = RUNNING }

#define HEADS(c, s) (c == 0 -> owner0[s] == HEAD : owner1[s] == HEAD)

#define REPLY(c, s, verdict) \
    assert(!lanes[c].p_sequence[s]); \
    lanes[c].slot[s] = NONE; memory[c].payload[s] = OLD; memory[c].header[s] = OLD; \
    if \
    :: WEAK(c) -> \
      lanes[c].code[s] = verdict; lanes[c].p_result[s] = (verdict == RESULT); \
      lanes[c].p_about[s] = 1; lanes[c].p_sequence[s] = 1 \
    :: else -> \
      assert(HEADS(c, s)); \
      n = LATEST(lanes[c].taken, s); \
      memory[c].sequence[s] = n; \
      if \
      :: clients[c].dead \
      :: else -> \
        memory[c].result[s] = (verdict == RESULT -> n : OLD); memory[c].about[s] = n; \
        memory[c].code[s] = verdict \
      fi; \
      if :: c == 0 -> owner0[s] = CLIENT :: else -> owner1[s] = CLIENT fi \
    fi

#define ANSWER(c, s) \
  d_step { !head_dead && lanes[c].slot[s] == RUNNING -> REPLY(c, s, RESULT) }

/* All of its rows are kept: it joins no batch, and may overtake an earlier one. */
#define ANSWER_KEPT(c, s) \
  d_step { !head_dead && lanes[c].slot[s] == QUEUED -> \
    assert(memory[c].payload[s] == LATEST(lanes[c].taken, s)); \
    REPLY(c, s, RESULT) }

/* The model failed, or the deadline passed before it began. */
#define REFUSE(c, s) \
  d_step { FAILS && !head_dead && lanes[c].slot[s] != NONE -> REPLY(c, s, FAILED) }

#define DROP_CANCELLED(c, s) \
  d_step { !head_dead && lanes[c].slot[s] != NONE && memory[c].cancelled[s] -> \
    REPLY(c, s, CANCELLED) }

#if defined(SEQUENCE_RELAXED)
#define BEFORE_SEQUENCE(c, s) (1)
#elif defined(RESULT_AFTER_SEQUENCE)
#define BEFORE_SEQUENCE(c, s) (!lanes[c].p_about[s])
#else
#define BEFORE_SEQUENCE(c, s) (!lanes[c].p_result[s] && !lanes[c].p_about[s])
#endif

#define STORE_RESULT(c, s) \
  d_step { lanes[c].p_result[s] -> \
    assert(HEADS(c, s)); \
    memory[c].result[s] = LATEST(lanes[c].taken, s); lanes[c].p_result[s] = 0 }

#define STORE_ABOUT(c, s) \
  d_step { lanes[c].p_about[s] -> \
    assert(HEADS(c, s)); \
    memory[c].about[s] = LATEST(lanes[c].taken, s); memory[c].code[s] = lanes[c].code[s]; \
    lanes[c].p_about[s] = 0 }

#define STORE_SEQUENCE(c, s) \
  d_step { lanes[c].p_sequence[s] && BEFORE_SEQUENCE(c, s) -> \
    memory[c].sequence[s] = LATEST(lanes[c].taken, s); lanes[c].p_sequence[s] = 0; \
    lanes[c].code[s] = 0; \
    if :: c == 0 -> owner0[s] = CLIENT :: else -> owner1[s] = CLIENT fi }

/* What it has of a client that died it drops: nobody waits for it. */
inline note_death(c) {
  lanes[c].gone = 1;
  wipe_lane()
}

#ifdef DEATH_NOT_COUNTED
#define NOTE_DEATH(which) d_step { 0 -> skip }
#else
#define NOTE_DEATH(which) \
  d_step { !head_dead && clients[which].dead && !lanes[which].gone -> \
    c = which; note_death(c); c = 0 }
#endif

#define SLOT_STEPS(c, s) \
  :: BEGIN(c, s) \
  :: ANSWER(c, s) \
  :: ANSWER_KEPT(c, s) \
  :: REFUSE(c, s) \
  :: DROP_CANCELLED(c, s) \
  :: STORE_RESULT(c, s) \
  :: STORE_ABOUT(c, s) \
  :: STORE_SEQUENCE(c, s)

/* It forgets its lanes; only what is visible counts. */
#define HEAD_DIES(becomes) \
  d_step { !safe && !head_dead && !(ENDED(0) && ENDED(1)) -> \
    becomes; \
    head_dead = 1; \
    for (n : 0 .. CLIENTS - 1) { \
      for (s : 0 .. SLOTS - 1) { \
        lanes[n].slot[s] = NONE; lanes[n].code[s] = 0; \
        lanes[n].p_result[s] = 0; lanes[n].p_about[s] = 0; lanes[n].p_sequence[s] = 0; \
        clients[n].p_payload[s] = 0; clients[n].p_header[s] = 0; \
        memory[n].payload[s] = OLD; memory[n].header[s] = OLD; memory[n].cancelled[s] = 0; \
        if \
        :: clients[n].dead -> \
          memory[n].result[s] = OLD; memory[n].about[s] = OLD; memory[n].code[s] = 0; \
          memory[n].sequence[s] = 0 \
        :: else \
        fi \
      } \
      lanes[n].taken = 0; lanes[n].gone = 0; memory[n].doorbell = clients[n].sent \
    }; \
    n = 0 }

#define REPLY_BECOMES(c, s) \
  if :: lanes[c].p_result[s] -> memory[c].result[s] = LATEST(lanes[c].taken, s) :: else fi; \
  if :: lanes[c].p_about[s] -> \
    memory[c].about[s] = LATEST(lanes[c].taken, s); memory[c].code[s] = lanes[c].code[s] \
  :: else fi; \
  if :: lanes[c].p_sequence[s] -> memory[c].sequence[s] = LATEST(lanes[c].taken, s) :: else fi

active proctype head() {
  byte c;
  run client(0);
#ifdef ONE_CLIENT
  clients[1].left = 1;
#else
  run client(1);
#endif
  do
  :: TAKE(0)
  :: TAKE(1)
  SLOT_STEPS(0, 0)
  SLOT_STEPS(0, 1)
  SLOT_STEPS(1, 0)
  SLOT_STEPS(1, 1)
#ifdef ACQUIRE_DROPPED
  :: LOAD_EARLY(0)
  :: LOAD_EARLY(1)
#endif
  :: NOTE_DEATH(0)
  :: NOTE_DEATH(1)
  :: HEAD_DIES(skip)
  :: HEAD_DIES(REPLY_BECOMES(0, 0); REPLY_BECOMES(0, 1))
  :: FINISHED -> break
  od
}

/* Deaths come to an end, or a rank that waits for ever could always die. */
active proctype fate() { safe = 1 }
