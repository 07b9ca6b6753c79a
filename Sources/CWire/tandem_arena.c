#include "tandem_arena.h"

#include <stdlib.h>

enum { FIRST_BYTES = 16 * 1024, CHUNK_BYTES = 256 * 1024 };

typedef struct Chunk {
    struct Chunk *next;
    size_t bytes;
    _Alignas(16) unsigned char memory[];
} Chunk;

struct TandemArena {
    ProtobufCAllocator allocator;
    Chunk *chunks; // the newest first; the last one is the first chunk, which is kept
    size_t used;   // of the newest chunk
    size_t total;  // allocated since the reset
    size_t cap;
    int overflowed;
};

static void *allocate(void *context, size_t bytes) { return tandem_arena_allocate(context, bytes); }

static void release(void *context, void *pointer) {
    (void)context;
    (void)pointer;
}

static Chunk *chunk_create(size_t bytes) {
    Chunk *chunk = malloc(sizeof(Chunk) + bytes);
    if (chunk == NULL) return NULL;
    chunk->next = NULL;
    chunk->bytes = bytes;
    return chunk;
}

TandemArena *tandem_arena_create(void) {
    TandemArena *arena = calloc(1, sizeof(TandemArena));
    if (arena == NULL) return NULL;
    arena->chunks = chunk_create(FIRST_BYTES);
    if (arena->chunks == NULL) {
        free(arena);
        return NULL;
    }
    arena->allocator.alloc = allocate;
    arena->allocator.free = release;
    arena->allocator.allocator_data = arena;
    return arena;
}

static void drop_all_but_first(TandemArena *arena) {
    while (arena->chunks->next != NULL) {
        Chunk *next = arena->chunks->next;
        free(arena->chunks);
        arena->chunks = next;
    }
}

void tandem_arena_destroy(TandemArena *arena) {
    if (arena == NULL) return;
    drop_all_but_first(arena);
    free(arena->chunks);
    free(arena);
}

void tandem_arena_reset(TandemArena *arena, size_t cap_bytes) {
    drop_all_but_first(arena);
    arena->used = 0;
    arena->total = 0;
    arena->cap = cap_bytes;
    arena->overflowed = 0;
}

void *tandem_arena_allocate(TandemArena *arena, size_t bytes) {
    if (bytes > arena->cap || arena->total > arena->cap - bytes) {
        arena->overflowed = 1;
        return NULL;
    }
    size_t rounded = (bytes + 15) & ~(size_t)15;
    if (rounded < bytes || rounded > arena->chunks->bytes - arena->used) {
        size_t want = rounded > CHUNK_BYTES ? rounded : CHUNK_BYTES;
        Chunk *chunk = rounded < bytes ? NULL : chunk_create(want);
        if (chunk == NULL) {
            arena->overflowed = 1;
            return NULL;
        }
        chunk->next = arena->chunks;
        arena->chunks = chunk;
        arena->used = 0;
    }
    void *result = arena->chunks->memory + arena->used;
    arena->used += rounded;
    // An empty allocation has an address of its own, as malloc's has, and costs something.
    arena->total += rounded > 0 ? rounded : 16;
    return result;
}

int tandem_arena_overflowed(const TandemArena *arena) { return arena->overflowed; }

ProtobufCAllocator *tandem_arena_allocator(TandemArena *arena) { return &arena->allocator; }
