/* What steps in native code share: sizes of blocks, bits of numbers, Adam's moments, and the mode of a thread.

   `native_code.py` puts the pattern in front of this text, M and N, and a step behind it.

   Work goes through blocks that stay in a core's first cache. Groups are independent of each other, so how they are divided among
   threads changes no bit. Numbers are float32; float16 and bfloat16 are converted with integers, which every machine can do. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK (1024 / M / 32 * 32) /* groups; whole bytes of packed bits */
#define SHARE (8 * BLOCK) /* groups that a thread takes at a time */

/* Adam's constants, as `native_code.py` describes them */
typedef struct {
    float beta2, one_less_beta2, carry, one_less_beta1, levels;
} constants;

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline float from_bfloat(uint16_t x) { return float_of((uint32_t)x << 16); }

/* to the nearest, ties to even */
static inline uint16_t to_bfloat(float x) {
    uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

/* `optimizer.advance` for one number: takes a gradient into both moments; the step for a rate of 1 */
static inline float advance(float grad, int8_t *restrict first, uint16_t *restrict second, int32_t dither, constants c) {
    float old = from_bfloat(*second);
    float new = old * c.beta2 + grad * grad * c.one_less_beta2;
    float inverse = 1.0f / sqrtf(new + 1e-24f);
    float relative = (float)*first * (sqrtf(old) * inverse * c.carry) + grad * inverse * c.one_less_beta1;
    *second = to_bfloat(new);
    float level = relative * c.levels, most = 127.0f * 8192.0f; /* so that every number, NaN too, becomes an integer */
    level = level < most ? level : most;
    level = level > -most ? level : -most;
    int32_t integer = ((int32_t)level + dither) >> 13;
    *first = (int8_t)(integer > 127 ? 127 : integer);
    return relative;
}

/* Whatever a thread's mode is, here denormal numbers are zero (see `memory.py`): threads must not differ. */
#if defined(__SSE2__)
#include <immintrin.h>
static unsigned long flush_denormals(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static void restore_denormals(unsigned long before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static unsigned long flush_denormals(void) {
    unsigned long before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | 1ul << 24));
    return before;
}
static void restore_denormals(unsigned long before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static unsigned long flush_denormals(void) { return 0; }
static void restore_denormals(unsigned long before) { (void)before; }
#endif

/* Work until nothing is left, some groups at a time: every thread that helps calls this. */
static void take_blocks(const void *work, ptrdiff_t groups, ptrdiff_t *begun, void (*blocks)(const void *, ptrdiff_t, ptrdiff_t)) {
    unsigned long before = flush_denormals();
    for (ptrdiff_t begin; (begin = __atomic_fetch_add(begun, SHARE, __ATOMIC_RELAXED)) < groups;)
        blocks(work, begin, groups - begin < SHARE ? groups : begin + SHARE);
    restore_denormals(before);
}
