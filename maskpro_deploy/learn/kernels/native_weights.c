/* A step of the kept weights of some groups: what `kept_weights.move_kept` and `kept_weights.remap` do, in one pass through memory.

   Slot k of a group is its k-th kept weight, which is in one of the places k to k + M - N. A group's numbers go from memory into
   planes, one for each place, from there into slots, and back: every loop over groups has a straight body of selections.

   `native_weights.py` puts one macro in front of this text, and `native_numbers.c`:

     EACH_PLACE(X)  X(i) for each weight i of a group. */

/* what is worked on, as `native_weights.py` describes it; slots are a stride apart */
typedef struct {
    const void *grad;
    void *weight;
    ptrdiff_t grad_is_float32, weight_is_float32; /* else bfloat16 */
    int8_t *first, *low; /* `low` is there for bfloat16 weights */
    uint16_t *second;
    const int32_t *dither;
    ptrdiff_t first_stride, low_stride, second_stride, dither_stride;
    const uint8_t *under, *after; /* bits of the mask of the gradient, and of the next one; none where it stays */
    ptrdiff_t groups, begun; /* all of them, and how many some thread has taken */
    constants adam;
    float scale, remains; /* `remains` is what decay leaves of a weight */
} chunk;

typedef uint32_t row[BLOCK]; /* bits of a float32, or of what is said, of each group */
typedef int32_t numbers[BLOCK];

enum { SPREAD = M - N };

/* The slot of every weight, N for a dropped one; eight weights share a byte, first weight first. */
static void number_slots(const uint8_t *restrict packed, numbers *restrict slot, int groups) {
    uint32_t code[BLOCK]; /* a group's bits */
#if 8 % M == 0
    enum { IN_BYTE = 8 / M }; /* groups */
    for (int b = 0; b < (groups + IN_BYTE - 1) / IN_BYTE; b++)
        for (int j = 0; j < IN_BYTE; j++) code[b * IN_BYTE + j] = packed[b] >> (8 - M - M * j) & ((1 << M) - 1);
#elif M % 8 == 0
    for (int g = 0; g < groups; g++) {
        code[g] = 0;
        for (int b = 0; b < M / 8; b++) code[g] = code[g] << 8 | packed[g * (M / 8) + b];
    }
#else
    for (int g = 0, place = 0; g < groups; g++) {
        code[g] = 0;
        for (int i = 0; i < M; i++, place++) code[g] = code[g] << 1 | (packed[place / 8] >> (7 - place % 8) & 1);
    }
#endif
    numbers count = {0};
    for (int i = 0; i < M; i++)
        for (int g = 0; g < groups; g++) {
            int32_t kept = code[g] >> (M - 1 - i) & 1;
            slot[i][g] = kept ? count[g] : N;
            count[g] += kept;
        }
}

/* planes to slots */
static void pick(const row *restrict plane, const numbers *restrict slot, row *restrict picked, int groups) {
    for (int k = 0; k < N; k++) {
        memcpy(picked[k], plane[k], sizeof(row));
        for (int i = k + 1; i <= k + SPREAD; i++)
            for (int g = 0; g < groups; g++) picked[k][g] = slot[i][g] == k ? plane[i][g] : picked[k][g];
    }
}

/* slots to planes; what is dropped stays as it is there */
static void put(const row *restrict picked, const numbers *restrict slot, row *restrict plane, int groups) {
    for (int k = 0; k < N; k++)
        for (int i = k; i <= k + SPREAD; i++)
            for (int g = 0; g < groups; g++) plane[i][g] = slot[i][g] == k ? picked[k][g] : plane[i][g];
}

static void read_bfloat16(const uint16_t *restrict from, row *restrict plane, int groups) {
    for (int g = 0; g < groups; g++) {
#define READ(i) plane[i][g] = (uint32_t)from[g * M + i] << 16;
        EACH_PLACE(READ)
    }
}

static void read_float32(const uint32_t *restrict from, row *restrict plane, int groups) {
    for (int g = 0; g < groups; g++) {
#define READ_WHOLE(i) plane[i][g] = from[g * M + i];
        EACH_PLACE(READ_WHOLE)
    }
}

static void write_bfloat16(const row *restrict plane, uint16_t *restrict to, int groups) {
    for (int g = 0; g < groups; g++) {
#define WRITE(i) to[g * M + i] = (uint16_t)(plane[i][g] >> 16);
        EACH_PLACE(WRITE)
    }
}

static void write_float32(const row *restrict plane, uint32_t *restrict to, int groups) {
    for (int g = 0; g < groups; g++) {
#define WRITE_WHOLE(i) to[g * M + i] = plane[i][g];
        EACH_PLACE(WRITE_WHOLE)
    }
}

/* One slot of bfloat16 weights, which with `low` are floats of 24 bits: the random bits below the last one decide. */
static void move_coarse(const uint32_t *restrict grad, uint32_t *restrict weight, int8_t *restrict first, uint16_t *restrict second,
                        int8_t *restrict low, const int32_t *restrict dither, constants constants, float scale, float remains,
                        int groups) {
    for (int g = 0; g < groups; g++) {
        float relative = advance(float_of(grad[g]), first + g, second + g, dither[g], constants);
        int32_t below = (weight[g] & 0x7fffffff) == 0 && low[g] < 0 ? 0 : low[g]; /* else a zero from elsewhere would become a NaN */
        float moved = float_of(weight[g] + ((uint32_t)below << 8)) * remains - relative * scale;
        uint32_t bits = bits_of(moved);
        bits = (bits & 0x7fffffff) > 0x7f800000 ? 0x7f800000 : bits; /* the bits of a NaN could carry to those of a zero */
        bits = (bits + (uint32_t)(dither[g] >> 5)) & ~0xffu;
        uint32_t high = (bits + 0x8000) & 0xffff0000;
        low[g] = (int8_t)((int32_t)(bits - high) >> 8);
        weight[g] = high;
    }
}

static void move_float32(const uint32_t *restrict grad, uint32_t *restrict weight, int8_t *restrict first, uint16_t *restrict second,
                         const int32_t *restrict dither, constants constants, float scale, float remains, int groups) {
    for (int g = 0; g < groups; g++) {
        float relative = advance(float_of(grad[g]), first + g, second + g, dither[g], constants);
        weight[g] = bits_of(float_of(weight[g]) * remains - relative * scale);
    }
}

/* All state of a slot as one number, and back. */
static void join(const int8_t *restrict first, const uint16_t *restrict second, const int8_t *restrict low, uint32_t *restrict state,
                 int groups) {
    for (int g = 0; g < groups; g++) state[g] = (uint32_t)second[g] << 16 | (uint32_t)(uint8_t)first[g] << 8 | (uint8_t)low[g];
}

static void part(const uint32_t *restrict state, int8_t *restrict first, uint16_t *restrict second, int8_t *restrict low, int groups) {
    for (int g = 0; g < groups; g++) {
        second[g] = (uint16_t)(state[g] >> 16);
        first[g] = (int8_t)(state[g] >> 8);
        low[g] = (int8_t)state[g];
    }
}

/* The state follows the mask: through the planes, where dropped weights have none. */
static void remap(const chunk *c, ptrdiff_t start, const numbers *restrict slot, int groups) {
    row state[N], plane[M] = {{0}};
    numbers slot_after[M];
    int8_t none[BLOCK] = {0};
    for (int k = 0; k < N; k++)
        join(c->first + k * c->first_stride + start, c->second + k * c->second_stride + start,
             c->low ? c->low + k * c->low_stride + start : none, state[k], groups);
    put(state, slot, plane, groups);
    number_slots(c->after + start * M / 8, slot_after, groups);
    pick(plane, slot_after, state, groups);
    for (int k = 0; k < N; k++)
        part(state[k], c->first + k * c->first_stride + start, c->second + k * c->second_stride + start,
             c->low ? c->low + k * c->low_stride + start : none, groups);
}

static __attribute__((noinline)) void blocks(const void *work, ptrdiff_t begin, ptrdiff_t end) {
    const chunk *c = work;
    row plane[M], grad[N], weight[N];
    numbers slot[M];
    for (ptrdiff_t start = begin; start < end; start += BLOCK) {
        int groups = end - start < BLOCK ? (int)(end - start) : BLOCK;
        number_slots(c->under + start * M / 8, slot, groups);
        if (c->grad_is_float32)
            read_float32((const uint32_t *)c->grad + start * M, plane, groups);
        else
            read_bfloat16((const uint16_t *)c->grad + start * M, plane, groups);
        pick(plane, slot, grad, groups);
        if (c->weight_is_float32)
            read_float32((const uint32_t *)c->weight + start * M, plane, groups);
        else
            read_bfloat16((const uint16_t *)c->weight + start * M, plane, groups);
        pick(plane, slot, weight, groups);
        for (int k = 0; k < N; k++) {
            int8_t *first = c->first + k * c->first_stride + start;
            uint16_t *second = c->second + k * c->second_stride + start;
            const int32_t *dither = c->dither + k * c->dither_stride + start;
            if (c->weight_is_float32)
                move_float32(grad[k], weight[k], first, second, dither, c->adam, c->scale, c->remains, groups);
            else
                move_coarse(grad[k], weight[k], first, second, c->low + k * c->low_stride + start, dither, c->adam, c->scale,
                            c->remains, groups);
        }
        put(weight, slot, plane, groups);
        if (c->weight_is_float32)
            write_float32(plane, (uint32_t *)c->weight + start * M, groups);
        else
            write_bfloat16(plane, (uint16_t *)c->weight + start * M, groups);
        if (c->after && memcmp(c->under + start * M / 8, c->after + start * M / 8, (size_t)(groups * M + 7) / 8))
            remap(c, start, slot, groups);
    }
}

void step(void *shared) {
    chunk *c = shared;
    take_blocks(c, c->groups, &c->begun, blocks);
}
