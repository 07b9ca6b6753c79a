#include "AllocationCounter.h"

#include <errno.h>
#include <stddef.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CANNOT_COUNT
#endif
#endif
#if !defined(__GLIBC__)
#define CANNOT_COUNT
#endif

#if defined(CANNOT_COUNT)

void allocation_count_start(void) {}
long allocation_count_stop(void) { return -1; }

#else

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static __thread int is_counting;
static __thread long taken;

void allocation_count_start(void) {
    taken = 0;
    is_counting = 1;
}

long allocation_count_stop(void) {
    is_counting = 0;
    return taken;
}

void *malloc(size_t size) {
    taken += is_counting;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    taken += is_counting;
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    taken += is_counting;
    return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size) {
    taken += is_counting;
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    taken += is_counting;
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **result, size_t alignment, size_t size) {
    taken += is_counting;
    void *memory = __libc_memalign(alignment, size);
    if (memory == NULL) return ENOMEM;
    *result = memory;
    return 0;
}

#endif
