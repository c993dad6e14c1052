/* race: a head and its clients as threads, for the thread sanitizer. */
#ifndef RACE_H
#define RACE_H

#include <pthread.h>

#include "bench/made_up.h"

enum { MAX_RACERS = 16 };

/* Runs the head, which gets the serving, and each client, which gets its lane, to their ends. */
static inline void race(msi_made_up *made, int clients, void *(*head)(void *),
                        void *(*client)(void *)) {
  pthread_t threads[MAX_RACERS];
  uint32_t lanes[MAX_RACERS];
  pthread_create(&threads[clients], NULL, head, &made->serving);
  for (int i = 0; i < clients; i++) {
    lanes[i] = (uint32_t)i;
    pthread_create(&threads[i], NULL, client, &lanes[i]);
  }
  for (int i = 0; i <= clients; i++) pthread_join(threads[i], NULL);
}

#endif
