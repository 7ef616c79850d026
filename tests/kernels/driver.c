/* Calls one compiled kernel outside of TVM: for processors that only an emulator offers.
 *
 * Standard input: the number of arguments, then for each its DLPack type code, its bits, the number
 * of its dimensions and those (all int64), then its bytes. Standard output: the bytes of the last
 * argument after the call. Arguments and scratch end, rounded up to 64 bytes, at a page that may not be touched,
 * and what lies between is checked: a kernel that reads or writes past an end does not get away.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>

enum { MAX_ARGUMENTS = 16, MAX_DIMENSIONS = 8, ALIGNMENT = 64, PAGE = 4096, CANARY = 0xA5 };

extern int __tvm_ffi_main(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

static void fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static size_t rounded(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

static char* guarded(size_t size) {
  size_t padded = rounded(size, ALIGNMENT), pages = rounded(padded, PAGE);
  char* base = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(base + pages, PAGE, PROT_NONE)) fail("no memory");
  char* start = base + pages - padded;
  memset(start, CANARY, padded);
  return start;
}

static void check_canary(const char* start, size_t size) {
  for (size_t i = size; i < rounded(size, ALIGNMENT); ++i)
    if ((unsigned char)start[i] != CANARY) fail("the kernel wrote past the end of an argument");
}

static void* allocate(int device_type, int device_id, uint64_t size, int code, int bits) {
  return guarded(size);
}

static int release(int device_type, int device_id, void* scratch) { return 0; }

/* Tasks share nothing but the input, so one after the other gives what a pool of threads gives. */
static int launch(FTVMParallelLambda task, void* closure, int count) {
  int tasks = count ? count : 1;
  TVMParallelGroupEnv group = {.sync_handle = NULL, .num_task = tasks};
  for (int i = 0; i < tasks; ++i)
    if (task(i, &group, closure)) return -1;
  return 0;
}

/* Kernels call the runtime through these pointers, which TVM's loader sets. */
__typeof__(&TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = allocate;
__typeof__(&TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = release;
__typeof__(&TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  fprintf(stderr, "%s: %s\n", kind, message);
}

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i] ? parts[i] : "", stderr);
  fputc('\n', stderr);
}

static void read_exactly(void* target, size_t size) {
  if (fread(target, 1, size, stdin) != size) fail("standard input ended early");
}

static size_t bytes_of(const DLTensor* tensor) {
  size_t elements = 1;
  for (int32_t i = 0; i < tensor->ndim; ++i) elements *= tensor->shape[i];
  return elements * tensor->dtype.bits / 8;
}

/* Shape, then compact strides. */
typedef int64_t Layout[2 * MAX_DIMENSIONS];

static void read_tensor(DLTensor* tensor, Layout layout) {
  int64_t header[3];
  read_exactly(header, sizeof header);
  int64_t ndim = header[2], *strides = layout + ndim;
  if (ndim < 0 || ndim > MAX_DIMENSIONS) fail("wrong number of dimensions");
  read_exactly(layout, ndim * sizeof *layout);
  for (int64_t i = ndim - 1, step = 1; i >= 0; step *= layout[i--]) strides[i] = step;
  *tensor = (DLTensor){
      .device = {kDLCPU, 0},
      .ndim = (int32_t)ndim,
      .dtype = {(uint8_t)header[0], (uint8_t)header[1], 1},
      .shape = layout,
      .strides = strides,
  };
  tensor->data = guarded(bytes_of(tensor));
  read_exactly(tensor->data, bytes_of(tensor));
}

int main(void) {
  DLTensor tensors[MAX_ARGUMENTS];
  Layout layouts[MAX_ARGUMENTS];
  int64_t count;
  TVMFFIAny arguments[MAX_ARGUMENTS] = {0}, result = {0};
  read_exactly(&count, sizeof count);
  if (count < 1 || count > MAX_ARGUMENTS) fail("wrong number of arguments");
  for (int64_t i = 0; i < count; ++i) {
    read_tensor(&tensors[i], layouts[i]);
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  if (__tvm_ffi_main(NULL, arguments, (int32_t)count, &result)) fail("the kernel failed");
  for (int64_t i = 0; i < count; ++i) check_canary(tensors[i].data, bytes_of(&tensors[i]));
  const DLTensor* out = &tensors[count - 1];
  return fwrite(out->data, 1, bytes_of(out), stdout) == bytes_of(out) ? 0 : 1;
}
