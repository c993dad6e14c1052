/* wait: time, and waiting that starts by spinning and ends by sleeping, because
 * ranks may outnumber cores. No MPI calls. */
#ifndef MSI_WAIT_H
#define MSI_WAIT_H

#include <stdatomic.h>
#include <stdint.h>

/* Monotonic nanoseconds. */
int64_t msi_now(void);

/* Nanoseconds from now, for a time-out in seconds; INT64_MAX for "forever". */
int64_t msi_deadline(double seconds);

/* How long a rank spins, yields and sleeps while it waits: it spins when it has a core to itself,
 * and yields and sleeps soon when it shares one. Learns: a yield that let others run for long
 * shortens the next spins, one that came back at once lengthens them. */
typedef struct msi_backoff {
  int64_t spin_ns; /* before the first yield */
  int64_t most_spin_ns;
  int64_t yield_ns; /* before the first sleep */
  int64_t sleep_ns; /* the longest sleep */
  int64_t every_ns; /* between two yields that the caller is told of; 0: it is of each */
  int64_t told_ns;  /* when that was last */
} msi_backoff;

/* ranks: of this node; cores: that this process may use. */
msi_backoff msi_backoff_for(int ranks, int cores);

/* A place to sleep at, in memory that both sides map. The sleeper raises its flag, looks
 * once more for what it waits for, and sleeps until word is target, or for a short time. Whoever
 * changes word wakes the sleeper if the flag is up. word and flag may be one. A sleeper that waits
 * for several others raises its flag to their number: the last one wakes it. */
typedef struct msi_wait_address {
  _Atomic uint32_t *word, *flag;
  uint32_t target, wakers;
  int64_t until_ns; /* when it must look again; 0: whenever it wakes up by itself */
} msi_wait_address;

/* Sleeps while word is value, at most ns; may return before. Sleepers and wakers may be different
 * processes. */
void msi_futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns);
void msi_futex_wake(_Atomic uint32_t *word);

/* One wait. Zero-initialise, then call msi_wait_pause() after each look that
 * found nothing, and msi_wait_end() at the end. The pause returns true now and then
 * (when it has slept, and after some yields), for work that is too dear for every look. Without a
 * address (NULL) sleeping is short naps. */
typedef struct msi_wait {
  int64_t start_ns;
  int64_t nap_ns;
  unsigned looks;
  int yields;     /* it has yielded */
  uint32_t armed; /* the flag of the address is up, for so many */
} msi_wait;

/* The part of a pause that does not sleep: it spins, then yields, and returns now and then that
 * it has yielded. MSI_WAIT_SPENT: time to sleep. */
enum { MSI_WAIT_SPUN, MSI_WAIT_YIELDED, MSI_WAIT_SPENT };
int msi_wait_spin(msi_wait *wait, msi_backoff *backoff);

int msi_wait_pause(msi_wait *wait, msi_backoff *backoff, const msi_wait_address *address);

/* Its two parts, for who looks for the address only before it sleeps. */
static inline int msi_wait_before_sleep(msi_wait *wait, msi_backoff *backoff) {
  return wait->nap_ns || wait->armed ? MSI_WAIT_SPENT : msi_wait_spin(wait, backoff);
}
int msi_wait_sleep(msi_wait *wait, msi_backoff *backoff, const msi_wait_address *address);
void msi_wait_end(msi_wait *wait, const msi_wait_address *address);

/* One of the others, after it has changed what the sleeper waits for. */
void msi_wait_wake(_Atomic uint32_t *word, _Atomic uint32_t *flag);

/* Cores that this process may use. */
int msi_cores(void);

#endif
