/* A libnvidia-ml.so.1 that plays the driver it is told to play, for the real binding to load.
 *
 *   SCRIPTED_NVML_INIT=CODE          nvmlInit answers CODE (nvml.h, nvmlReturn_t): 9 not loaded, 18 mismatch
 *   SCRIPTED_NVML_HANG=init|memory|temperature   that call never returns
 *   SCRIPTED_NVML_CRASH=1            nvmlInit ends the process
 *   SCRIPTED_NVML_GPUS="NAME,TOTAL,RESERVED,USED;..."      MiB; one entry a GPU
 *   SCRIPTED_NVML_PROCESSES="GPU,PID,USED,NAME;..."        MiB; USED - is not available, NAME - is not found
 *   SCRIPTED_NVML_GRAPHICS="GPU,PID,USED,NAME;..."         the same of processes that draw
 *   SCRIPTED_NVML_LOST=INDEX         that GPU fell off the bus
 *   SCRIPTED_NVML_MIG=INDEX          all GPUs can be split, and that one is: instances 0 and 2 exist, with a
 *                                    quarter of the memory each; -1: none of them is
 *   SCRIPTED_NVML_MEMORY=CODE        both memory calls answer CODE
 *   SCRIPTED_NVML_LISTS=CODE         the calls for processes answer CODE
 *   SCRIPTED_NVML_OLD=1              a driver before 510: the second form for memory and the third for processes miss
 *   SCRIPTED_NVML_HEALTH="INDEX:KEY=VALUE,KEY=VALUE;..."   what that GPU says of itself; - is not supported,
 *                                    -CODE answers CODE. Keys:
 *                                    temperature (41), slowdown (90), utilization (0), throttle (0: a mask),
 *                                    persistence (1), ecc (0: since the driver was loaded), ecc_life (0),
 *                                    pending, failed (0: remapped rows), retired (-: pages of older cards)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_FUNCTION = 13, LOST = 15 };
enum { GPUS = 8, PROCESSES = 16, PLACES = 7 };
static const unsigned long long MIB = 1024ULL * 1024;

struct device { int index, instance; char name[96]; unsigned long long total, reserved, used; };
struct memory_v1 { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct pci {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

static struct device gpus[GPUS], instances[PLACES];
static int count;

static const char *told(const char *name) { const char *value = getenv(name); return value ? value : ""; }
static int number(const char *name, int otherwise) { return *told(name) ? atoi(told(name)) : otherwise; }
static int is_split(const struct device *device) { return device->index == number("SCRIPTED_NVML_MIG", -1); }
static void hang_if(const char *where) { while (!strcmp(told("SCRIPTED_NVML_HANG"), where)) pause(); }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    hang_if("init");
    if (number("SCRIPTED_NVML_CRASH", 0)) abort();
    char *list = strdup(told("SCRIPTED_NVML_GPUS")), *rest = NULL;
    count = 0;
    for (char *item = strtok_r(list, ";", &rest); item && count < GPUS; item = strtok_r(NULL, ";", &rest)) {
        struct device *gpu = &gpus[count];
        gpu->index = count++;
        gpu->instance = -1;
        sscanf(item, "%95[^,],%llu,%llu,%llu", gpu->name, &gpu->total, &gpu->reserved, &gpu->used);
    }
    free(list);
    return number("SCRIPTED_NVML_INIT", OK);
}

/* The value that SCRIPTED_NVML_HEALTH has for a key of this GPU: OK and the number, or an error. */
static int health(const struct device *device, const char *key, long long usually, long long *value) {
    char mark[16], word[64];
    snprintf(mark, sizeof mark, "%d:", device->index);
    snprintf(word, sizeof word, "%s=", key);
    *value = usually;
    char *list = strdup(told("SCRIPTED_NVML_HEALTH")), *rest = NULL;
    for (char *item = strtok_r(list, ";", &rest); item; item = strtok_r(NULL, ";", &rest)) {
        if (strncmp(item, mark, strlen(mark))) continue;
        char *inner = NULL;
        for (char *pair = strtok_r(item + strlen(mark), ",", &inner); pair; pair = strtok_r(NULL, ",", &inner))
            if (!strncmp(pair, word, strlen(word)))
                *value = !strcmp(pair + strlen(word), "-") ? -NOT_SUPPORTED : atoll(pair + strlen(word));
    }
    free(list);
    if (device->instance >= 0) *value = -NOT_SUPPORTED;
    return *value < 0 ? (int)-*value : OK;
}

static int health_word(const struct device *device, const char *key, long long usually, unsigned *value) {
    long long found;
    int code = health(device, key, usually, &found);
    if (code == OK) *value = (unsigned)found;
    return code;
}

int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "a scripted error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "550.54.15"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *found) { *found = (unsigned)count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    if (index >= (unsigned)count) return INVALID;
    if ((int)index == number("SCRIPTED_NVML_LOST", -1)) return LOST;
    *device = &gpus[index];
    return OK;
}

int nvmlDeviceGetName(struct device *device, char *text, unsigned size) {
    snprintf(text, size, "%s", device->name);
    return OK;
}

int nvmlDeviceGetUUID(struct device *device, char *text, unsigned size) {
    if (device->instance < 0) snprintf(text, size, "GPU-00000000-0000-0000-0000-%012d", device->index);
    else snprintf(text, size, "MIG-00000000-0000-0000-%04d-%012d", device->index, device->instance);
    return OK;
}

int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *pci) {
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned)device->index + 0x17;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    return OK;
}

int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *celsius) {
    hang_if("temperature");
    return sensor ? INVALID : health_word(device, "temperature", 41, celsius);
}

int nvmlDeviceGetTemperatureThreshold(struct device *device, int threshold, unsigned *celsius) {
    return threshold != 1 ? NOT_SUPPORTED : health_word(device, "slowdown", 90, celsius);
}

int nvmlDeviceGetUtilizationRates(struct device *device, unsigned rates[2]) {
    rates[1] = 0;
    return health_word(device, "utilization", 0, rates);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, unsigned long long *mask) {
    return health(device, "throttle", 0, (long long *)mask);
}

int nvmlDeviceGetPersistenceMode(struct device *device, unsigned *mode) {
    return health_word(device, "persistence", 1, mode);
}

/* Uncorrected errors (1) only are asked for; counter 0 is since the driver was loaded, 1 over the card's life. */
int nvmlDeviceGetTotalEccErrors(struct device *device, int type, int counter, unsigned long long *errors) {
    return type != 1 ? INVALID : health(device, counter ? "ecc_life" : "ecc", 0, (long long *)errors);
}

int nvmlDeviceGetRemappedRows(struct device *device, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    *corrected = *uncorrected = 0;
    int code = health_word(device, "pending", 0, pending);
    return code ? code : health_word(device, "failed", 0, failed);
}

int nvmlDeviceGetRetiredPagesPendingStatus(struct device *device, unsigned *pending) {
    return health_word(device, "retired", -NOT_SUPPORTED, pending);
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    if (!*told("SCRIPTED_NVML_MIG")) return NOT_SUPPORTED;
    *current = *pending = is_split(device);
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *found) {
    *found = is_split(device) ? PLACES : 0;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned place, struct device **instance) {
    if (!is_split(device) || (place != 0 && place != 2)) return NOT_FOUND;
    instances[place] = *device;
    instances[place].instance = (int)place;
    instances[place].total /= 4;
    instances[place].reserved = instances[place].used = 0;
    *instance = &instances[place];
    return OK;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory_v1 *memory) {
    hang_if("memory");
    memory->total = device->total * MIB;
    memory->used = (device->reserved + device->used) * MIB;
    memory->free = memory->total - memory->used;
    return number("SCRIPTED_NVML_MEMORY", OK);
}

int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *memory) {
    hang_if("memory");
    if (number("SCRIPTED_NVML_OLD", 0)) return NO_FUNCTION;
    if (memory->version != (sizeof *memory | 2U << 24)) return INVALID;
    memory->total = device->total * MIB;
    memory->reserved = device->reserved * MIB;
    memory->used = device->used * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return number("SCRIPTED_NVML_MEMORY", OK);
}

/* One entry of SCRIPTED_NVML_PROCESSES at a time; NULL at the end. */
static const char *next_process(const char *from, int *gpu, struct process *process, char name[1024]) {
    char used[32] = "";
    if (!*from || sscanf(from, "%d,%u,%31[^,],%1023[^;]", gpu, &process->pid, used, name) != 4) return NULL;
    process->used = *used == '-' ? ~0ULL : strtoull(used, NULL, 10) * MIB;
    const char *end = strchr(from, ';');
    return end ? end + 1 : from + strlen(from);
}

static int processes(const char *list, struct device *device, unsigned *size, struct process *found) {
    if (number("SCRIPTED_NVML_LISTS", OK)) return number("SCRIPTED_NVML_LISTS", OK);
    struct process process = {0}, all[PROCESSES];
    char name[1024];
    int gpu = 0;
    unsigned have = 0;
    const char *at = told(list);
    while ((at = next_process(at, &gpu, &process, name)) && have < PROCESSES)
        if (gpu == device->index && device->instance < 0) all[have++] = process;
    unsigned given = *size;
    *size = have;
    if (!have) return OK;
    if (given < have) return TOO_SMALL;
    memcpy(found, all, have * sizeof *all);
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(struct device *device, unsigned *size, struct process *found) {
    return processes("SCRIPTED_NVML_PROCESSES", device, size, found);
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *size, struct process *found) {
    if (number("SCRIPTED_NVML_OLD", 0)) return NO_FUNCTION;
    return processes("SCRIPTED_NVML_PROCESSES", device, size, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(struct device *device, unsigned *size, struct process *found) {
    return processes("SCRIPTED_NVML_GRAPHICS", device, size, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *device, unsigned *size, struct process *found) {
    if (number("SCRIPTED_NVML_OLD", 0)) return NO_FUNCTION;
    return processes("SCRIPTED_NVML_GRAPHICS", device, size, found);
}

int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) {
    struct process process = {0};
    char name[1024];
    int gpu = 0;
    const char *at = told("SCRIPTED_NVML_PROCESSES");
    while ((at = next_process(at, &gpu, &process, name)))
        if (process.pid == pid && strcmp(name, "-")) {
            snprintf(text, size, "%s", name);
            return OK;
        }
    return NOT_FOUND;
}
