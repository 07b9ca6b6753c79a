// Counts what the calling thread takes from the heap: this program's malloc stands before libc's.
#ifndef TANDEM_ALLOCATION_COUNTER_H
#define TANDEM_ALLOCATION_COUNTER_H

/// Begins at 0 on this thread.
void allocation_count_start(void);
/// Ends; how many blocks this thread took since. -1 where this build cannot count (sanitizers, other systems).
long allocation_count_stop(void);

#endif
