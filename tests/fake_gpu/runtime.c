/* A CUDA runtime and the memory of a driver without a card behind them.

Memory is real host memory under a limit, copies up to 64 KiB are real, kernels do nothing and are
counted by name. Every function that PyTorch's libraries ask for and that is not here is made by
build.py to return success.

Environment: FAKE_GPU_CAP=8.6 (compute capability), FAKE_GPU_BYTES (memory of the card),
FAKE_GPU_USED (bytes of it that other programs hold), FAKE_GPU_FAULT=LAUNCHES:FILE (an illegal
memory access after this many launches of the process that makes FILE). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "driver_types.h"

typedef int Error;
typedef struct { unsigned x, y, z; } Dim3;
enum { OK = 0, OUT_OF_MEMORY = 2, NO_SUCH_DEVICE = 101, ILLEGAL_ACCESS = 700 };
enum { TO_DEVICE = 1, TO_HOST = 2, WITHIN_DEVICE = 3, EITHER_WAY = 4 };
enum { HOST = 1, DEVICE = 2 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- what happened ---------------------------------------------------------------------------- */

enum { LAUNCHES, PRODUCTS, SYNCS, COPIES_IN, COPIES_OUT, COPIES_WITHIN, FILLS, ALLOCATIONS, FREES,
       REPLAYS, CAPTURED, FORBIDDEN, USED, PEAK, COUNTERS };
static long count[COUNTERS];
static int capturing;
static Error last_error, fault;

void fake_counts(long *out) { memcpy(out, count, sizeof count); }

void fake_product(void) { count[capturing ? CAPTURED : PRODUCTS]++; }  /* called by cuBLAS's stand-in */

static void note_sync(void) {
    count[SYNCS]++;
    if (capturing) count[FORBIDDEN]++;
}

/* Kernels are known by the address of their host function: a hash table with open addressing, of
more entries than PyTorch has kernels. */
#define KERNELS (1 << 19)
typedef struct { const void *host; const char *name; long launches; } Kernel;
static Kernel kernels[KERNELS];

static Kernel *kernel_of(const void *host) {
    unsigned long at = (((unsigned long)host >> 2) * 2654435761UL) % KERNELS;
    while (kernels[at].host && kernels[at].host != host) at = (at + 1) % KERNELS;
    kernels[at].host = host;
    return &kernels[at];
}

void fake_reset(void) {
    long used = count[USED];
    memset(count, 0, sizeof count);
    count[USED] = count[PEAK] = used;
    for (long i = 0; i < KERNELS; i++) kernels[i].launches = 0;
}

void fake_kernels(const char *path) {
    FILE *out = fopen(path, "w");
    for (long i = 0; i < KERNELS; i++)
        if (kernels[i].launches)
            fprintf(out, "%ld %s\n", kernels[i].launches, kernels[i].name ? kernels[i].name : "?");
    fclose(out);
}

static void inject(void) {
    static long after = -1, done;
    static char file[4096];
    if (after < 0) {
        const char *asked = getenv("FAKE_GPU_FAULT");
        after = 0;
        if (asked) sscanf(asked, "%ld:%4095s", &after, file);
    }
    if (!after || ++done < after || fault) return;
    int made = open(file, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (made >= 0) { close(made); fault = ILLEGAL_ACCESS; } else after = 0;
}

static Error launch(const void *host) {
    pthread_mutex_lock(&lock);
    count[capturing ? CAPTURED : LAUNCHES]++;
    kernel_of(host)->launches++;
    inject();
    pthread_mutex_unlock(&lock);
    return fault;
}

/* With FAKE_GPU_LOG, a process that launched anything leaves a line there when it ends. */
__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAKE_GPU_LOG");
    if (!path || !(count[LAUNCHES] + count[REPLAYS])) return;
    char line[4096];
    FILE *in = fopen("/proc/self/cmdline", "r");
    size_t size = in ? fread(line, 1, sizeof line - 1, in) : 0;
    for (size_t i = 0; i < size; i++) if (!line[i]) line[i] = ' ';
    line[size] = 0;
    FILE *out = fopen(path, "a");
    fprintf(out, "%ld %s\n", count[LAUNCHES], line);
    fclose(out);
}

/* --- registration and launches ---------------------------------------------------------------- */

void **__cudaRegisterFatBinary(void *binary) { return malloc(64); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **h, char *a, char *b, const char *c, int d, size_t e, int f, int g) {}
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int limit, void *a, void *b, void *c, void *d, int *e) {
    pthread_mutex_lock(&lock);
    kernel_of(host)->name = name;
    pthread_mutex_unlock(&lock);
}

static __thread struct { Dim3 grid, block; size_t shared; void *stream; } pushed[16];
static __thread int depth;
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void *stream) {
    pushed[depth & 15].grid = grid;
    pushed[depth & 15].block = block;
    pushed[depth & 15].shared = shared;
    pushed[depth++ & 15].stream = stream;
    return OK;
}
Error __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void *stream) {
    depth--;
    *grid = pushed[depth & 15].grid;
    *block = pushed[depth & 15].block;
    *shared = pushed[depth & 15].shared;
    *(void **)stream = pushed[depth & 15].stream;
    return OK;
}
Error cudaLaunchKernel(const void *f, Dim3 g, Dim3 b, void **a, size_t s, void *t) { return launch(f); }
Error __cudaLaunchKernel(const void *f, Dim3 g, Dim3 b, void **a, size_t s, void *t) { return launch(f); }
Error cudaLaunchCooperativeKernel(const void *f, Dim3 g, Dim3 b, void **a, size_t s, void *t) { return launch(f); }
Error cudaLaunchKernelExC(const void *config, const void *f, void **a) { return launch(f); }
Error cuLaunchKernel(void *f, ...) { return launch(f); }
Error cuLaunchKernelEx(void *config, void *f, ...) { return launch(f); }
Error cuLaunchCooperativeKernel(void *f, ...) { return launch(f); }
Error __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return OK; }
Error cudaGetFuncBySymbol(void **kernel, const void *f) { *kernel = (void *)f; return OK; }

/* --- memory ----------------------------------------------------------------------------------- */

static size_t bytes_from(const char *name, size_t otherwise) {
    const char *given = getenv(name);
    return given ? strtoull(given, 0, 10) : otherwise;
}
static size_t total(void) { return bytes_from("FAKE_GPU_BYTES", 24UL << 30); }
static size_t available(void) { return total() - bytes_from("FAKE_GPU_USED", 0) - count[USED]; }

typedef struct { char *start; size_t size; int kind; } Block;
static Block blocks[1 << 20];
static long block_count;

static void remember(void *start, size_t size, int kind) {
    long at = 0;
    while (at < block_count && blocks[at].start) at++;
    if (at == block_count) block_count++;
    blocks[at] = (Block){start, size, kind};
}
static Block *block_at(const void *pointer) {
    for (long i = 0; i < block_count; i++)
        if (blocks[i].start && (char *)pointer >= blocks[i].start
            && (char *)pointer < blocks[i].start + blocks[i].size) return &blocks[i];
    return 0;
}
static int take(size_t size) {
    if (size > available()) return 0;
    count[USED] += size;
    if (count[USED] > count[PEAK]) count[PEAK] = count[USED];
    count[ALLOCATIONS]++;
    if (capturing) count[FORBIDDEN]++;
    return 1;
}
static void *pages(size_t size, int protection) {
    return mmap(0, size ? size : 1, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

Error cudaMalloc(void **pointer, size_t size) {
    pthread_mutex_lock(&lock);
    Error error = take(size) ? OK : (last_error = OUT_OF_MEMORY);
    *pointer = 0;
    if (!error) remember(*pointer = pages(size, PROT_READ | PROT_WRITE), size, DEVICE);
    pthread_mutex_unlock(&lock);
    return error;
}
Error cudaMallocAsync(void **p, size_t size, void *stream) { return cudaMalloc(p, size); }
Error cudaMallocManaged(void **p, size_t size, unsigned flags) { return cudaMalloc(p, size); }
Error cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    pthread_mutex_lock(&lock);
    *pointer = aligned_alloc(4096, (size / 4096 + 1) * 4096);
    remember(*pointer, size, HOST);
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cudaFree(void *pointer) {
    pthread_mutex_lock(&lock);
    Block *block = pointer ? block_at(pointer) : 0;
    if (block && block->kind == DEVICE) {
        munmap(block->start, block->size ? block->size : 1);
        count[USED] -= block->size;
        count[FREES]++;
    } else if (block) free(block->start);
    if (block) block->start = 0;
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cudaFreeHost(void *pointer) { return cudaFree(pointer); }
Error cudaFreeAsync(void *pointer, void *stream) { return cudaFree(pointer); }
Error cudaHostRegister(void *pointer, size_t size, unsigned flags) {
    pthread_mutex_lock(&lock);
    remember(pointer, size, HOST);
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cudaHostUnregister(void *pointer) {
    pthread_mutex_lock(&lock);
    Block *block = block_at(pointer);
    if (block) block->start = 0;
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cudaMemGetInfo(size_t *unused, size_t *all) {
    *all = total();
    *unused = available();
    return OK;
}
Error cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *pointer) {
    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&lock);
    Block *block = block_at(pointer);
    if (block) {
        out->type = block->kind;
        out->devicePointer = out->hostPointer = (void *)pointer;
    }
    pthread_mutex_unlock(&lock);
    return OK;
}

/* Virtual memory, of which PyTorch makes its expandable segments: an address range is reserved, and
memory is created and mapped into it in pieces. */
Error cuMemGetAllocationGranularity(size_t *size, void *properties, int which) {
    *size = 2UL << 20;
    return OK;
}
Error cuMemAddressReserve(void **pointer, size_t size, size_t align, void *at, long flags) {
    pthread_mutex_lock(&lock);
    remember(*pointer = pages(size, PROT_NONE), size, DEVICE);
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cuMemAddressFree(void *pointer, size_t size) {
    pthread_mutex_lock(&lock);
    Block *block = block_at(pointer);
    if (block) block->start = 0;
    munmap(pointer, size);
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cuMemCreate(size_t **handle, size_t size, void *properties, long flags) {
    pthread_mutex_lock(&lock);
    Error error = take(size) ? OK : OUT_OF_MEMORY;
    if (!error) *(*handle = malloc(sizeof size)) = size;
    pthread_mutex_unlock(&lock);
    return error;
}
Error cuMemRelease(size_t *handle) {
    pthread_mutex_lock(&lock);
    count[USED] -= *handle;
    count[FREES]++;
    free(handle);
    pthread_mutex_unlock(&lock);
    return OK;
}
Error cuMemMap(void *pointer, size_t size, size_t offset, void *handle, long flags) {
    return mprotect(pointer, size, PROT_READ | PROT_WRITE);
}
Error cuMemUnmap(void *pointer, size_t size) {
    madvise(pointer, size, MADV_DONTNEED);
    return mprotect(pointer, size, PROT_NONE);
}
Error cuMemSetAccess(void *pointer, size_t size, void *access, size_t n) { return OK; }

/* Large copies move no bytes: nothing computes with them, and the weights of a model of 8 billion
parameters would fill the machine. What comes back to the host is copied, or it would be random. */
#define LARGE (16 << 20)
static Error copy(void *to, const void *from, size_t size, int way) {
    count[way == TO_HOST ? COPIES_OUT : way == TO_DEVICE ? COPIES_IN : COPIES_WITHIN]++;
    if (way == TO_HOST || size <= LARGE) memcpy(to, from, size);
    if (way == TO_HOST && size == 1) *(char *)to = 1;  /* "are all finite?" */
    return fault;
}
Error cudaMemcpy(void *to, const void *from, size_t size, int way) { note_sync(); return copy(to, from, size, way); }
Error cudaMemcpyAsync(void *to, const void *from, size_t size, int way, void *s) { return copy(to, from, size, way); }
Error cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, void *s) { return copy(to, from, size, WITHIN_DEVICE); }
Error cudaMemset(void *to, int value, size_t size) {
    count[FILLS]++;
    if (size <= LARGE) memset(to, value, size);
    return fault;
}
Error cudaMemsetAsync(void *to, int value, size_t size, void *stream) { return cudaMemset(to, value, size); }
Error cudaMemcpyToSymbol(const void *to, const void *from, size_t n, size_t offset, int way) { return OK; }
Error cudaGetSymbolAddress(void **pointer, const void *symbol) {
    static char room[4096];
    *pointer = room;
    return OK;
}
Error cudaMemPoolGetAttribute(void *pool, int which, void *value) { *(uint64_t *)value = 0; return OK; }
Error cudaDeviceGetDefaultMemPool(void **pool, int device) { *pool = (void *)8; return OK; }

/* --- the card --------------------------------------------------------------------------------- */

static int capability(int minor) {
    int major_part = 8, minor_part = 6;
    const char *given = getenv("FAKE_GPU_CAP");
    if (given) sscanf(given, "%d.%d", &major_part, &minor_part);
    return minor ? minor_part : major_part;
}
typedef struct { int capability; const char *name; int processors, shared, threads; } Card;
static const Card cards[] = {
    {75, "Tesla T4", 40, 65536, 1024},
    {80, "NVIDIA A800-SXM4-80GB", 108, 166912, 2048},
    {86, "NVIDIA GeForce RTX 3090", 82, 101376, 1536},
    {90, "NVIDIA H200", 132, 232448, 2048},
};
static const Card *card(void) {
    int asked = 10 * capability(0) + capability(1);
    for (unsigned i = 0; i < sizeof cards / sizeof *cards; i++)
        if (cards[i].capability == asked) return &cards[i];
    fprintf(stderr, "FAKE_GPU_CAP: expected 7.5, 8.0, 8.6 or 9.0\n");
    exit(2);
}

Error cudaGetDeviceCount(int *n) { *n = 1; return OK; }
Error cudaGetDevice(int *device) { *device = 0; return OK; }
Error cudaSetDevice(int device) { return device == 0 ? OK : (last_error = NO_SUCH_DEVICE); }
Error cudaChooseDevice(int *device, void *properties) { *device = 0; return OK; }
Error cudaDriverGetVersion(int *version) { *version = 13000; return OK; }
Error cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }
Error cudaDeviceGetAttribute(int *value, int which, int device) {
    switch (which) {
        case cudaDevAttrComputeCapabilityMajor: *value = capability(0); break;
        case cudaDevAttrComputeCapabilityMinor: *value = capability(1); break;
        case cudaDevAttrMultiProcessorCount: *value = card()->processors; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = card()->shared; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = card()->shared + 1024; break;
        case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = card()->threads; break;
        case cudaDevAttrClockRate: *value = 1695000; break;
        case cudaDevAttrL2CacheSize: *value = 6 << 20; break;
        default: *value = 1;
    }
    return OK;
}
Error cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
    memset(out, 0, sizeof *out);
    strcpy(out->name, card()->name);
    out->totalGlobalMem = total();
    out->major = capability(0);
    out->minor = capability(1);
    out->multiProcessorCount = card()->processors;
    out->warpSize = 32;
    out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
    out->maxThreadsDim[2] = 64;
    out->maxGridSize[0] = 2147483647;
    out->maxGridSize[1] = out->maxGridSize[2] = 65535;
    out->sharedMemPerBlock = 49152;
    out->sharedMemPerBlockOptin = card()->shared;
    out->sharedMemPerMultiprocessor = card()->shared + 1024;
    out->regsPerBlock = out->regsPerMultiprocessor = 65536;
    out->maxThreadsPerMultiProcessor = card()->threads;
    out->maxBlocksPerMultiProcessor = 16;
    out->totalConstMem = 65536;
    out->l2CacheSize = 6 << 20;
    out->memoryBusWidth = 384;
    out->textureAlignment = 512;
    out->asyncEngineCount = 2;
    out->unifiedAddressing = out->concurrentKernels = out->cooperativeLaunch = out->canMapHostMemory = 1;
    return OK;
}
Error cudaDeviceGetPCIBusId(char *out, int size, int device) { strncpy(out, "0000:01:00.0", size); return OK; }
Error cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return OK; }
Error cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
Error cudaDeviceSynchronize(void) { note_sync(); return fault; }

const char *cudaGetErrorName(Error error) {
    return error == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : error == ILLEGAL_ACCESS ? "cudaErrorIllegalAddress" : error ? "cudaErrorUnknown" : "cudaSuccess";
}
const char *cudaGetErrorString(Error error) {
    return error == OUT_OF_MEMORY ? "out of memory" : error == ILLEGAL_ACCESS ? "an illegal memory access was encountered" : error ? "unknown error" : "no error";
}
Error cudaGetLastError(void) { Error error = fault ? fault : last_error; last_error = OK; return error; }
Error cudaPeekAtLastError(void) { return fault ? fault : last_error; }

/* --- streams, events, graphs ------------------------------------------------------------------ */

static void *handle(void) {
    static uintptr_t next = 4096;
    return (void *)(next += 64);
}
Error cudaStreamCreate(void **s) { *s = handle(); return OK; }
Error cudaStreamCreateWithFlags(void **s, unsigned flags) { *s = handle(); return OK; }
Error cudaStreamCreateWithPriority(void **s, unsigned flags, int priority) { *s = handle(); return OK; }
Error cudaStreamSynchronize(void *s) { note_sync(); return fault; }
Error cudaStreamQuery(void *s) { return fault; }
Error cudaStreamGetPriority(void *s, int *priority) { *priority = 0; return OK; }
Error cudaStreamGetDevice(void *s, int *device) { *device = 0; return OK; }
Error cudaStreamGetFlags(void *s, unsigned *flags) { *flags = 0; return OK; }
Error cudaStreamGetId(void *s, unsigned long long *id) { *id = 1; return OK; }
Error cudaEventCreate(void **e) { *e = handle(); return OK; }
Error cudaEventCreateWithFlags(void **e, unsigned flags) { *e = handle(); return OK; }
Error cudaEventQuery(void *e) { return fault; }
Error cudaEventSynchronize(void *e) { note_sync(); return fault; }
Error cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 1; return OK; }
Error cudaLaunchHostFunc(void *s, void (*f)(void *), void *argument) { f(argument); return OK; }

Error cudaStreamIsCapturing(void *s, int *state) { *state = capturing; return OK; }
Error cudaStreamGetCaptureInfo(void *s, int *state, unsigned long long *id, void **graph,
                               const void ***nodes, const void **edges, size_t *n) {
    *state = capturing;
    if (id) *id = 7;
    if (graph) *graph = (void *)64;
    if (nodes) *nodes = 0;
    if (edges) *edges = 0;
    if (n) *n = 0;
    return OK;
}
Error cudaStreamBeginCapture(void *s, int mode) { capturing = 1; return OK; }
Error cudaStreamEndCapture(void *s, void **graph) { capturing = 0; *graph = (void *)64; return OK; }
Error cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) { *exec = (void *)64; return OK; }
Error cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { *exec = (void *)64; return OK; }
Error cudaGraphLaunch(void *exec, void *s) { count[REPLAYS]++; return fault; }
Error cudaGraphGetNodes(void *graph, void *nodes, size_t *n) { *n = count[CAPTURED]; return OK; }
Error cudaThreadExchangeStreamCaptureMode(int *mode) {
    static __thread int now;
    int before = now;
    now = *mode;
    *mode = before;
    return OK;
}

/* --- functions and libraries of kernels ------------------------------------------------------- */

Error cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *f) {
    memset(out, 0, sizeof *out);
    out->maxThreadsPerBlock = 1024;
    out->numRegs = 32;
    out->ptxVersion = out->binaryVersion = 10 * capability(0) + capability(1);
    return OK;
}
Error cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int block, size_t shared) { *n = 2; return OK; }
Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared, unsigned flags) { *n = 2; return OK; }
Error cudaLibraryLoadData(void **library, ...) { *library = (void *)64; return OK; }
Error cudaLibraryGetKernel(void **kernel, void *library, const char *name) { *kernel = (void *)name; return OK; }

static long nothing(void) { return OK; }
static Error entry_point(const char *name, void **f, int *found) {
    *f = dlsym(RTLD_DEFAULT, name);
    if (!*f) *f = (void *)nothing;
    if (found) *found = 0;
    return OK;
}
Error cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags, int *found) { return entry_point(name, f, found); }
Error cudaGetDriverEntryPoint(const char *name, void **f, unsigned long long flags, int *found) { return entry_point(name, f, found); }

/* --- what the driver says: Triton asks it, and PyTorch for a few things ----------------------- */

Error cuCtxGetCurrent(void **context) { *context = (void *)64; return OK; }
Error cuDeviceGet(int *device, int ordinal) { *device = 0; return OK; }
Error cuDeviceGetAttribute(int *value, int which, int device) {
    /* Memory is not shared between processes: no handle type but none. */
    return which > 100 ? (*value = 0, OK) : cudaDeviceGetAttribute(value, which, device);
}
Error cuFuncGetAttribute(int *value, int which, void *f) { *value = which == 0 ? 1024 : 32; return OK; }
Error cuGetErrorString(int error, const char **text) { *text = cudaGetErrorString(error); return OK; }
Error cuModuleGetFunction(void **f, void *module, char *name) { *f = (void *)name; return OK; }
Error cuModuleLoadData(void **module, void *image) { *module = (void *)64; return OK; }
Error cuModuleLoadDataEx(void **module, void *image, ...) { *module = (void *)64; return OK; }
Error cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return OK; }
Error cuDriverGetVersion(int *version) { *version = 13000; return OK; }
