/* A stand-in for NVIDIA's libnvidia-ml.so.1, as far as the health checks call it.
 *
 * What it answers stands in the file that $FAKE_NVML_STATE names, read anew by every call, so that
 * a test changes a node's GPUs while they are watched. One KEY=VALUE a line:
 *
 *   gpus=2              how many GPUs there are; NAME below is of all, N.NAME of GPU N alone
 *   init=9              what nvmlInit returns; 0 is success, 9 "driver not loaded"
 *   hang=1              every call sleeps for ever (N.hang: every call about GPU N)
 *   N.lost=1            every call about GPU N returns NVML_ERROR_GPU_IS_LOST (15); else that number
 *   N.unlisted=1        as lost, and a new process does not even get its UUID
 *   N.uuid=GPU-...      and so on: see the answers below; "none" is NVML_ERROR_NOT_SUPPORTED
 *   event=SEQ GPU XID   an event, told to event sets created before it was written; SEQ rises
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, SIZE = 7, TIMEOUT = 10, LOST = 15 };
enum { MOST = 16, TEXT = 256 };

typedef struct { int index; } *Device;
typedef struct { long last; } *EventSet;

typedef struct {
  char legacy[16];
  unsigned domain, bus, device, id, subsystem;
  char bus_id[32];
} Pci;
typedef struct {
  unsigned id, scope;
  int64_t time, latency;
  unsigned type, code;
  union { double d; unsigned u; unsigned long long ull; } value;
} Field;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu, compute; } Process;
typedef struct { Device device; unsigned long long type, data; unsigned gpu, compute; } Event;

static struct { int index; } devices[MOST];

static FILE *state(void) {
  const char *path = getenv("FAKE_NVML_STATE");
  return path ? fopen(path, "r") : NULL;
}

/* The last value of a key; 0 if there is none. */
static int find(const char *key, char *value) {
  char line[TEXT];
  int found = 0;
  FILE *file = state();
  while (file && fgets(line, sizeof line, file)) {
    char *equals = strchr(line, '=');
    line[strcspn(line, "\n")] = 0;
    if (!equals) continue;
    *equals = 0;
    if (strcmp(line, key) == 0) {
      snprintf(value, TEXT, "%s", equals + 1);
      found = 1;
    }
  }
  if (file) fclose(file);
  return found;
}

static long number(const char *key, long otherwise) {
  char value[TEXT];
  return find(key, value) ? strtol(value, NULL, 0) : otherwise;
}

/* What is told of a GPU: its own line, else that of all, else `otherwise`. */
static const char *of(Device device, const char *name, const char *otherwise) {
  static char value[TEXT];
  char key[TEXT];
  snprintf(key, sizeof key, "%d.%s", device->index, name);
  if (find(key, value) || find(name, value)) return value;
  snprintf(value, sizeof value, "%s", otherwise);
  return value;
}

static void hang(void) {
  for (;;) sleep(1000);
}

static int alive(Device device) {
  if (number("hang", 0) || strtol(of(device, "hang", "0"), NULL, 0)) hang();
  if (strtol(of(device, "unlisted", "0"), NULL, 0)) return LOST;
  long lost = strtol(of(device, "lost", "0"), NULL, 0);
  return lost == 1 ? LOST : (int)lost;
}

static int text(Device device, const char *name, const char *otherwise, char *to, unsigned size) {
  int code = alive(device);
  if (code) return code;
  const char *value = of(device, name, otherwise);
  if (strcmp(value, "none") == 0) return UNSUPPORTED;
  snprintf(to, size, "%s", value);
  return OK;
}

static int count(Device device, const char *name, const char *otherwise, unsigned long long *to) {
  char value[TEXT];
  int code = text(device, name, otherwise, value, sizeof value);
  if (code == OK) *to = strtoull(value, NULL, 0);
  return code;
}

static int small(Device device, const char *name, const char *otherwise, unsigned *to) {
  unsigned long long wide = 0;
  int code = count(device, name, otherwise, &wide);
  if (code == OK) *to = (unsigned)wide;
  return code;
}

static char *standard(Device device, const char *form) {
  static char value[TEXT];
  snprintf(value, sizeof value, form, device->index);
  return value;
}

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  if (number("hang", 0)) hang();
  return (int)number("init", OK);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
  static char told[TEXT];
  switch (code) {
    case 3: return "Not Supported";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 18: return "Driver/library version mismatch";
  }
  snprintf(told, sizeof told, "error %d", code);
  return told;
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) {
  char value[TEXT] = "570.86.15";
  find("driver", value);
  snprintf(to, size, "%s", value);
  return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *to) {
  *to = (int)number("cuda", 12080);
  return OK;
}
int nvmlSystemGetCudaDriverVersion(int *to) { return nvmlSystemGetCudaDriverVersion_v2(to); }

int nvmlDeviceGetCount_v2(unsigned *to) {
  if (number("hang", 0)) hang();
  *to = (unsigned)number("gpus", 1);
  return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *to) {
  if (index >= MOST) return INVALID;
  devices[index].index = (int)index;
  *to = (Device)&devices[index];
  return strtol(of(*to, "unlisted", "0"), NULL, 0) ? LOST : OK;
}

int nvmlDeviceGetUUID(Device d, char *to, unsigned size) {
  return text(d, "uuid", standard(d, "GPU-00000000-0000-0000-0000-00000000000%d"), to, size);
}
int nvmlDeviceGetName(Device d, char *to, unsigned size) {
  return text(d, "name", "NVIDIA H100 80GB HBM3", to, size);
}
int nvmlDeviceGetSerial(Device d, char *to, unsigned size) {
  return text(d, "serial", standard(d, "165012345678%d"), to, size);
}
int nvmlDeviceGetPciInfo_v3(Device d, Pci *to) {
  memset(to, 0, sizeof *to);
  return text(d, "bus", standard(d, "00000000:C%d:00.0"), to->bus_id, sizeof to->bus_id);
}

int nvmlDeviceGetEccMode(Device d, unsigned *now, unsigned *pending) {
  int code = small(d, "ecc", "1", now);
  *pending = *now;
  return code;
}
int nvmlDeviceGetTotalEccErrors(Device d, unsigned kind, unsigned counter,
                                unsigned long long *to) {
  const char *names[] = {"corrected", "corrected_ever", "uncorrected", "uncorrected_ever"};
  return count(d, names[(kind & 1) * 2 + (counter & 1)], "0", to);
}
int nvmlDeviceGetRemappedRows(Device d, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
  int code = small(d, "remap_corrected", "0", corrected);
  if (code == OK) code = small(d, "remap_uncorrected", "0", uncorrected);
  if (code == OK) code = small(d, "remap_pending", "0", pending);
  if (code == OK) code = small(d, "remap_failed", "0", failed);
  return code;
}
int nvmlDeviceGetRetiredPages(Device d, unsigned cause, unsigned *pages,
                              unsigned long long *addresses) {
  unsigned have = 0, room = *pages;
  int code = small(d, "retired", "none", &have);
  (void)cause;
  if (code != OK) return code;
  *pages = have;
  if (!addresses || room < have) return have ? SIZE : OK;
  for (unsigned i = 0; i < have; i++) addresses[i] = i << 16;
  return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(Device d, unsigned *to) {
  return small(d, "retired_pending", "none", to);
}

int nvmlDeviceGetNvLinkState(Device d, unsigned link, unsigned *to) {
  unsigned links = 0;
  unsigned long long down = 0; /* bit mask */
  int code = small(d, "nvlinks", "18", &links);
  if (code == OK && link >= links) return UNSUPPORTED;
  if (code == OK) code = count(d, "nvlinks_down", "0", &down);
  *to = !(down >> link & 1);
  return code;
}
int nvmlDeviceGetNvLinkErrorCounter(Device d, unsigned link, unsigned counter,
                                    unsigned long long *to) {
  const char *names[] = {"nvlink_replays", "nvlink_recoveries", "nvlink_crc"};
  int code = count(d, counter < 3 ? names[counter] : "nvlink_other", "0", to);
  if (code == OK && link) *to = 0; /* all of them on the first link */
  return code;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device d, unsigned long long *to) {
  return count(d, "clocks", "0", to);
}
int nvmlDeviceGetTemperature(Device d, unsigned sensor, unsigned *to) {
  (void)sensor;
  return small(d, "temperature", "45", to);
}
int nvmlDeviceGetPowerUsage(Device d, unsigned *to) { return small(d, "power_mw", "350000", to); }
int nvmlDeviceGetCurrPcieLinkGeneration(Device d, unsigned *to) {
  return small(d, "pcie_generation", "5", to);
}
int nvmlDeviceGetMaxPcieLinkGeneration(Device d, unsigned *to) {
  return small(d, "pcie_generation_max", "5", to);
}
int nvmlDeviceGetCurrPcieLinkWidth(Device d, unsigned *to) {
  return small(d, "pcie_width", "16", to);
}
int nvmlDeviceGetMaxPcieLinkWidth(Device d, unsigned *to) {
  return small(d, "pcie_width_max", "16", to);
}

int nvmlDeviceGetFieldValues(Device d, int fields, Field *to) {
  int code = alive(d);
  if (code) return code;
  for (int i = 0; i < fields; i++) {
    to[i].type = 1;
    to[i].value.ull = 0;
    to[i].code = UNSUPPORTED;
    if (to[i].id == 230) to[i].code = (unsigned)small(d, "recovery", "none", &to[i].value.u);
  }
  return OK;
}

/* process=PID BYTES */
int nvmlDeviceGetComputeRunningProcesses_v3(Device d, unsigned *have, Process *to) {
  char value[TEXT];
  unsigned room = *have;
  int code = text(d, "process", "", value, sizeof value);
  if (code != OK) return code;
  *have = value[0] != 0;
  if (*have == 0) return OK;
  if (!to || room < 1) return SIZE;
  memset(to, 0, sizeof *to);
  sscanf(value, "%u %llu", &to->pid, &to->bytes);
  return OK;
}

/* The first event after `last`; the last of all if `to` is 0. */
static int next_event(long *last, Event *to) {
  char line[TEXT];
  int found = 0;
  FILE *file = state();
  while (file && !found && fgets(line, sizeof line, file)) {
    long sequence;
    int gpu;
    unsigned long long xid;
    if (sscanf(line, "event=%ld %d %llu", &sequence, &gpu, &xid) != 3 || sequence <= *last)
      continue;
    *last = sequence;
    if (!to) continue;
    devices[gpu].index = gpu;
    memset(to, 0, sizeof *to);
    to->device = (Device)&devices[gpu];
    to->type = 8; /* nvmlEventTypeXidCriticalError */
    to->data = xid;
    found = 1;
  }
  if (file) fclose(file);
  return found;
}

int nvmlEventSetCreate(EventSet *to) {
  *to = calloc(1, sizeof **to);
  next_event(&(*to)->last, NULL);
  return OK;
}
int nvmlEventSetFree(EventSet set) {
  free(set);
  return OK;
}
int nvmlDeviceGetSupportedEventTypes(Device d, unsigned long long *to) {
  *to = 0x1f;
  return alive(d);
}
int nvmlDeviceRegisterEvents(Device d, unsigned long long types, EventSet set) {
  (void)types, (void)set;
  return alive(d);
}
int nvmlEventSetWait_v2(EventSet set, Event *to, unsigned timeout_ms) {
  if (number("hang", 0)) hang();
  if (next_event(&set->last, to)) return OK;
  usleep((timeout_ms < 20 ? timeout_ms : 20) * 1000);
  return next_event(&set->last, to) ? OK : TIMEOUT;
}
