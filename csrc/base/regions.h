/* regions: tells other profilers of this process when a rank waits for a model, or runs a batch.
 * No MPI calls. */
#ifndef MSI_REGIONS_H
#define MSI_REGIONS_H

/* Looks for Caliper, Score-P and NVTX among the libraries of the process. Nothing is loaded. */
void msi_regions_open(void);

/* A region of this thread begins or ends. They are nested. */
void msi_region_begin(const char *name);
void msi_region_end(const char *name);

#endif
