/* A CUDA driver whose device is this machine's memory: what the bindings call lands here with the arguments as they pass them.
   Like the real one it refuses calls from a thread that has not made the context current, and memory beyond its size. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long long ptr;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
#define CONTEXT ((void *)0x1234)
#define STREAM ((void *)0x7fff00000001)
#define SIZE (1 << 24)
static __thread void *current;
static size_t used, live;
static int capturing;
#define ENTER if (current != CONTEXT) return INVALID_CONTEXT
#define ON(s) if ((s) != STREAM) return INVALID_VALUE

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal ? INVALID_VALUE : OK; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Host GPU"); return OK; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : which == 76 ? 9 : -1; return OK; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = CONTEXT; return OK; }
int cuCtxSetCurrent(void *context) { current = context; return OK; }
int cuStreamCreate(void **stream, unsigned flags) { ENTER; *stream = STREAM; return flags == 1 ? OK : INVALID_VALUE; }
int cuStreamDestroy_v2(void *stream) { return OK; }
int cuStreamSynchronize(void *stream) { ENTER; ON(stream); return capturing ? INVALID_VALUE : OK; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { ENTER; *free = SIZE - used; *total = SIZE; return OK; }
int cuMemAlloc_v2(ptr *address, size_t n) {
    ENTER;
    if (n > SIZE - used) return OUT_OF_MEMORY;
    size_t *block = malloc(n + 256);
    *block = n; used += n; live++;
    *address = (ptr)block + 256;
    return OK;
}
int cuMemFree_v2(ptr address) { ENTER; size_t *block = (size_t *)(address - 256); used -= *block; live--; free(block); return OK; }
int cuMemAllocHost_v2(void **p, size_t n) { ENTER; *p = malloc(n); return OK; }
int cuMemFreeHost(void *p) { free(p); return OK; }
int cuMemcpyHtoDAsync_v2(ptr to, const void *from, size_t n, void *stream) { ENTER; ON(stream); memcpy((void *)to, from, n); return OK; }
int cuMemcpyDtoHAsync_v2(void *to, ptr from, size_t n, void *stream) { ENTER; ON(stream); memcpy(to, (void *)from, n); return OK; }
int cuMemsetD8Async(ptr to, unsigned char value, size_t n, void *stream) { ENTER; ON(stream); memset((void *)to, value, n); return OK; }

typedef struct {
    size_t sx, sy; int stype; const void *shost; ptr sdevice; void *sarray; size_t spitch;
    size_t dx, dy; int dtype; void *dhost; ptr ddevice; void *darray; size_t dpitch;
    size_t width, height;
} copy2d;
int cuMemcpy2DAsync_v2(const copy2d *c, void *stream) {
    ENTER; ON(stream);
    if (c->stype != 2 || c->dtype != 2 || c->width > c->spitch || c->width > c->dpitch) return INVALID_VALUE;
    for (size_t i = 0; i < c->height; i++)
        memcpy((char *)c->ddevice + i * c->dpitch, (char *)c->sdevice + i * c->spitch, c->width);
    return OK;
}

typedef struct { double ms; } event;
int cuEventCreate(void **e, unsigned flags) { ENTER; *e = calloc(1, sizeof(event)); return flags ? INVALID_VALUE : OK; }
int cuEventRecord(void *e, void *stream) {
    ENTER; ON(stream);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ((event *)e)->ms = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    return OK;
}
int cuEventSynchronize(void *e) { ENTER; return e ? OK : INVALID_VALUE; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) { ENTER; *ms = (float)(((event *)to)->ms - ((event *)from)->ms); return OK; }

static int launches;
int cuStreamBeginCapture_v2(void *stream, int mode) { ENTER; ON(stream); capturing = 1; return mode == 2 ? OK : INVALID_VALUE; }
int cuStreamEndCapture(void *stream, void **graph) { ENTER; ON(stream); capturing = 0; *graph = (void *)0x51; return OK; }
int cuGraphInstantiateWithFlags(void **exec, void *graph, ptr flags) { ENTER; *exec = (void *)0x52; return graph == (void *)0x51 && !flags ? OK : INVALID_VALUE; }
int cuGraphDestroy(void *graph) { return graph == (void *)0x51 ? OK : INVALID_VALUE; }
int cuGraphLaunch(void *exec, void *stream) { ENTER; ON(stream); launches++; return exec == (void *)0x52 ? OK : INVALID_VALUE; }
int cuGraphExecDestroy(void *exec) { return exec == (void *)0x52 ? OK : INVALID_VALUE; }
int cuGetErrorString(int code, const char **text) { *text = code == OUT_OF_MEMORY ? "out of memory" : "refused"; return OK; }

int host_live(void) { return live; }
int host_launches(void) { return launches; }

/* the bindings ask for every function by its plain name; the newest version of it has a suffix */
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    char versioned[128];
    const char *suffixes[] = {"_v2", "WithFlags", ""};
    *function = NULL;
    for (int i = 0; i < 3 && !*function; i++) {
        snprintf(versioned, sizeof versioned, "%s%s", name, suffixes[i]);
        *function = dlsym(RTLD_DEFAULT, versioned);
        if (!*function) { void *own = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD); if (own) *function = dlsym(own, versioned); }
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
