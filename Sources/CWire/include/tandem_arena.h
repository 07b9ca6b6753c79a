#pragma once
#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

// Memory for one message at a time, with a hard cap: what a hostile header can make protobuf-c
// allocate ends at `cap_bytes`. Freed as a whole; not for use by two threads at once.
typedef struct TandemArena TandemArena;

// NULL where the system has no memory.
TandemArena *tandem_arena_create(void);
void tandem_arena_destroy(TandemArena *arena);

// Forgets everything allocated and sets the cap for what follows.
void tandem_arena_reset(TandemArena *arena, size_t cap_bytes);

// 16-byte aligned, not zeroed; NULL beyond the cap.
void *tandem_arena_allocate(TandemArena *arena, size_t bytes);

// Whether an allocation has been refused since the last reset.
int tandem_arena_overflowed(const TandemArena *arena);

// For protobuf-c's unpack functions: frees nothing by itself.
ProtobufCAllocator *tandem_arena_allocator(TandemArena *arena);
