/**
 * What a virtual machine monitor needs of KVM: the types that the machine room is written against.
 *
 * Pure types and constants. `host.ts` implements them over the native addon, `fake.ts` in memory for
 * tests without KVM. One JavaScript thread owns all devices; vCPU threads are native. Everything
 * here is called on that one thread.
 *
 * Units last in names; guest physical addresses are Numbers below 2^53; BigInt only where a vCPU
 * register, an MSR or a clock is meant. Programmer errors (wrong type, index out of range) throw
 * AssertionError or TypeError; everything the host refuses throws VmmError with a code `KVM_*`.
 */

/** Bytes of a guest page: the unit of the dirty log, gather and scatter. */
export const PAGE_SIZE_BYTES = 4096;

/** Largest memory buffer (limit of ArrayBuffer use; see docs/architecture). */
export const MEMORY_BUFFER_MAX_BYTES = 2 * 1024 * 1024 * 1024;

/** Why a vCPU stopped (word SLOT_WORD.kind of its exit slot). */
export const EXIT = {
  /** The guest reads `count` items of `size` bytes from port `address`: fill `data`. */
  pioIn: 1,
  /** The guest writes `count` items of `size` bytes, in `data`, to port `address`. */
  pioOut: 2,
  /** The guest reads `size` (1-8) bytes at guest physical `address`: fill `data`. */
  mmioRead: 3,
  /** The guest writes `size` (1-8) bytes, in `data`, to guest physical `address`. */
  mmioWrite: 4,
  /** Triple fault. Terminal. */
  shutdown: 5,
  /** KVM system event; `detail` is a SYSTEM_EVENT value. Terminal. */
  systemEvent: 6,
  /** KVM gave up (`detail` = suberror, `data` = instruction bytes, `dataLength`; rip). Terminal. */
  internalError: 7,
  /** The processor refused the guest state; detail64 = hardware reason. Terminal. */
  failEntry: 8,
  /** Guest debug event (single step, breakpoint); rip, `detail` = exception, detail64 = DR6. */
  debug: 9,
  /** Hypercall that KVM passes on: `detail` = number; arguments as six u64 in `data`, result u64 first. */
  hypercall: 10,
  /** HLT seen in user space (only without an in-kernel irqchip). */
  halt: 11,
  /** KVM_RUN itself failed; `detail` = errno. Terminal. */
  runError: 12,
  /** An exit reason that nobody here knows; `detail` = the KVM exit reason. Terminal. */
  unknown: 13,
} as const;
export type ExitKind = (typeof EXIT)[keyof typeof EXIT];

/** `detail` of a systemEvent exit (numbers of the KVM API). */
export const SYSTEM_EVENT = { shutdown: 1, reset: 2, crash: 3, wakeup: 4, suspend: 5 } as const;

/** Kinds after which a vCPU cannot simply go on; see KvmVm.pauseAll. */
export function isTerminalExit(kind: number): boolean {
  return (
    kind === EXIT.shutdown ||
    kind === EXIT.systemEvent ||
    kind === EXIT.internalError ||
    kind === EXIT.failEntry ||
    kind === EXIT.runError ||
    kind === EXIT.unknown
  );
}

/** Index of each u32 in ExitSlot.words. */
export const SLOT_WORD = {
  kind: 0,
  /** Bytes per item. */
  size: 1,
  /** Items (string PIO; else 1). size * count <= SLOT_DATA_BYTES. */
  count: 2,
  addressLo: 3,
  addressHi: 4,
  vcpu: 5,
  /** Meaning depends on kind, see EXIT. */
  detail: 6,
  /** Valid bytes in `data` (PIO, MMIO: size * count). */
  dataLength: 7,
  /** RIP where KVM told it (internalError, debug, failEntry and shutdown read it afterwards). */
  ripLo: 8,
  ripHi: 9,
  detail64Lo: 10,
  detail64Hi: 11,
} as const;

export const SLOT_DATA_OFFSET = 64;
export const SLOT_DATA_BYTES = 4096;
/** Distance between the slots of two vCPUs in the one shared buffer. */
export const SLOT_STRIDE_BYTES = SLOT_DATA_OFFSET + SLOT_DATA_BYTES + 32;

/**
 * The mailbox of one vCPU: three views of the same memory. Valid inside `onExit(vcpu)` and, when
 * that returned false, until `completeExit(vcpu)`. Views are made once per VM; never keep copies of
 * numbers across exits.
 */
export interface ExitSlot {
  readonly words: Uint32Array;
  /** SLOT_DATA_BYTES bytes. */
  readonly data: Uint8Array;
  /** The same bytes as `data`. */
  readonly view: DataView;
}

/**
 * Coalesced writes, handed over in batches. Entry i starts at byte i * COALESCED_ENTRY_BYTES of
 * `KvmVm.coalesced.buffer`.
 */
export const COALESCED_ENTRY_BYTES = 32;
export const COALESCED_WORD = { kind: 0, size: 1, addressLo: 2, addressHi: 3, data: 4 } as const;

export interface VmHandlers {
  /**
   * An exit waits in `vm.slots[vcpu]`. Return true when it is complete (read data written into the
   * slot), false to leave it open until `completeExit`. May be called from inside `pauseAll`.
   * A throw leaves the exit open and reaches the caller (pauseAll) or `uncaughtException`.
   * Promises that it resolves continue after it has returned; they may pause and destroy the VM.
   */
  onExit(vcpu: number): boolean;
  /**
   * `count` entries of `vm.coalesced` (EXIT.pioOut or EXIT.mmioWrite, size, address, 8 data bytes)
   * were written by the guest before the exit delivered next. Called before each exit that finds
   * the ring non-empty, and by drainCoalesced.
   */
  onCoalesced?(count: number): void;
}

export interface VmOptions {
  /** 1..KvmCapabilities.vcpusMax. */
  vcpus: number;
  /**
   * `host` or `baseline`, then any of `,+flag` and `,-flag` with the flag names of /proc/cpuinfo.
   * Default `host`.
   */
  cpu?: string;
  /** In-kernel PIT with speaker dummy. Default true. */
  pit?: boolean;
  /** Guest physical address of the three pages KVM needs on Intel. Default 0xfffbd000. */
  tssAddress?: number;
  spin?: SpinOptions;
}

/** Upper bounds of the adaptive spinning; 0 turns a side off. */
export interface SpinOptions {
  /** vCPU thread waiting for JavaScript. Default 200. */
  vcpuMaxUs?: number;
  /** JavaScript loop polling after the last exit, and up to 120 after a doorbell, a completion or a frame. Default 200. */
  loopMaxUs?: number;
}

/** What probing this host found. `hasX` are KVM capabilities. */
export interface KvmCapabilities {
  apiVersion: number;
  vcpusMax: number;
  memorySlotsMax: number;
  hasReadonlyMemory: boolean;
  hasImmediateExit: boolean;
  hasIrqchip: boolean;
  hasPit2: boolean;
  hasIoeventfd: boolean;
  /** ioeventfd of length 0 (matches any access size); faster on hardware. */
  hasIoeventfdAnyLength: boolean;
  hasIrqfd: boolean;
  hasSignalMsi: boolean;
  hasCoalescedMmio: boolean;
  hasCoalescedPio: boolean;
  hasTscControl: boolean;
  hasTscDeadline: boolean;
  hasVcpuTscOffset: boolean;
  hasAdjustClock: boolean;
  hasXsave: boolean;
  /** KVM_GET_XSAVE2 size; 4096 where the kernel has only KVM_GET_XSAVE. */
  xsaveBytes: number;
  hasQuirkOut7eDisable: boolean;
  /** Where RIP is at a plain PIO OUT exit, found with a throw-away VM the first time this is read (some milliseconds). */
  readonly lazySkip: LazySkip;
}

/** `late`: RIP still on the OUT, `early`: already past it, `unknown`: the probe got no OUT exit. */
export type SkipPoint = 'late' | 'early' | 'unknown';
export interface LazySkip {
  long: SkipPoint;
  protected32: SkipPoint;
  real: SkipPoint;
}

export interface KvmHost {
  /** Opens /dev/kvm and probes; the answer is cached. VmmError KVM_UNAVAILABLE says why not. */
  probe(): KvmCapabilities;
  /** A VM with its vCPUs, irqchip, PIT and CPUID, without memory; nothing runs yet. */
  createVm(options: VmOptions): KvmVm;
  /** A memory map of its own (page spaces, tests); no KVM needed. */
  createMemoryMap(): KvmMemoryMap;
}

/** A piece of guest-physical space backed by host memory. */
export interface MemorySlotOptions {
  /** KVM slot number, 0..memorySlotsMax-1; must be free. */
  slot: number;
  /** Page aligned. */
  guestPhys: number;
  /** Page aligned, at most MEMORY_BUFFER_MAX_BYTES. */
  sizeBytes: number;
  /** Guest writes come as mmioWrite exits. */
  readonly?: boolean;
  /** Dirty logging on from the start. */
  log?: boolean;
  /**
   * Number that the dirty log gives the slot's first page. Default guestPhys / 4096. Lets an alias
   * report the pages of what it aliases.
   */
  firstPage?: number;
}

/**
 * Guest-physical (or any other page space) to host memory. Passed to native gather, scatter and
 * I/O. Pages are numbers of PAGE_SIZE_BYTES units in the map's own space.
 */
export interface KvmMemoryMap {
  /** Adds `buffer` (or a part of it) at `guestPhys`; ranges must not overlap. */
  addRange(guestPhys: number, buffer: ArrayBuffer, offset?: number, sizeBytes?: number): void;
  removeRange(guestPhys: number): void;
  /** Copies page pages[i] to dst at i * 4096, for i < count. All or nothing for bad page numbers. */
  gather(pages: Uint32Array, count: number, dst: Uint8Array): void;
  /**
   * Begins to gather on a thread of its own: page i goes to byte blocks[i / blockPages] of dst, and on from there. Until
   * {@link endGather} neither memory nor dst may change. One at a time. @throws RangeError as gather
   */
  beginGather(
    pages: Uint32Array,
    count: number,
    dst: Uint8Array,
    blocks: Uint32Array,
    blockPages: number,
  ): void;
  /** Takes part in what was begun until all of it is copied. Does nothing when nothing was. */
  endGather(): void;
  /** The inverse of gather. */
  scatter(pages: Uint32Array, count: number, src: Uint8Array): void;
  /** Memory to gather into, whole pages of it: in huge pages where the host has them. Occupies nothing until it is written. */
  allocate(sizeBytes: number): Uint8Array;
  /** Copies guest memory out; throws VmmError KVM_MEMORY_RANGE if not wholly mapped. */
  read(guestPhys: number, dst: Uint8Array): void;
  write(guestPhys: number, src: Uint8Array): void;
  /** The native object, for native I/O. Opaque. */
  readonly native: object;
}

/** One entry of the GSI routing table. */
export type GsiRoute =
  | { gsi: number; kind: 'pic-master' | 'pic-slave' | 'ioapic'; pin: number }
  | { gsi: number; kind: 'msi'; address: number; data: number };

export interface IoEventOptions {
  space: 'pio' | 'mmio';
  address: number;
  /** 0 = any size (needs hasIoeventfdAnyLength, no datamatch), else 1, 2, 4, 8. */
  size: number;
  /** Only writes of this value signal. */
  datamatch?: number;
}

/** A doorbell: guest writes become calls of the handler, without stopping the vCPU. */
export interface IoEvent {
  /** The eventfd, for native consumers. */
  readonly fd: number;
  /** Unregisters and closes. Idempotent. */
  close(): void;
}

/** An interrupt that anybody with the eventfd can raise. */
export interface Irqfd {
  readonly fd: number;
  readonly gsi: number;
  /** Raises it (one write to the eventfd). */
  signal(): void;
  /** Unregisters and closes. Idempotent. */
  close(): void;
}

/** Full state of a vCPU. Opaque arrays hold the kernel's structures (little-endian, x86-64 ABI). */
export interface VcpuState {
  /** KVM_GET_REGS: rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags (see REG). */
  regs: BigUint64Array;
  /** struct kvm_sregs. */
  sregs: Uint8Array;
  /** XSAVE image (KVM_GET_XSAVE2 where bigger than 4096). */
  xsave: Uint8Array;
  /** struct kvm_xcrs. */
  xcrs: Uint8Array;
  msrIndices: Uint32Array;
  msrValues: BigUint64Array;
  /** struct kvm_lapic_state. */
  lapic: Uint8Array;
  /** struct kvm_vcpu_events. */
  events: Uint8Array;
  /** KVM_MP_STATE_*. */
  mpState: number;
  /** struct kvm_debugregs. */
  debugregs: Uint8Array;
  /** Guest TSC = host TSC + offset (where the host reports it, else 0). */
  tscOffset: bigint;
  hasTscOffset: boolean;
  /** Host TSC of the instant that the state stands for (the end of the pause). */
  hostTsc: bigint;
  tscKhz: number;
}

/** Indices into VcpuState.regs. */
export const REG = {
  rax: 0,
  rbx: 1,
  rcx: 2,
  rdx: 3,
  rsi: 4,
  rdi: 5,
  rsp: 6,
  rbp: 7,
  r8: 8,
  r9: 9,
  r10: 10,
  r11: 11,
  r12: 12,
  r13: 13,
  r14: 14,
  r15: 15,
  rip: 16,
  rflags: 17,
} as const;

/** State that KVM keeps for the whole VM. */
export interface VmState {
  /** struct kvm_irqchip's chip, 512 bytes each. */
  picMaster: Uint8Array;
  picSlave: Uint8Array;
  ioapic: Uint8Array;
  /** struct kvm_pit_state2; empty without a PIT. */
  pit2: Uint8Array;
  /** kvmclock, nanoseconds. */
  clockNs: bigint;
  /** KVM_CLOCK_* flags that the capture reported. */
  clockFlags: number;
  /** CLOCK_REALTIME of the capture; meaningful with flag KVM_CLOCK_REALTIME (4). */
  clockRealtimeNs: bigint;
  /** Meaningful with flag KVM_CLOCK_HOST_TSC (8). */
  clockHostTsc: bigint;
}

export interface KvmState {
  vm: VmState;
  vcpus: VcpuState[];
}

export interface RestoreOptions {
  /**
   * Time that passed outside since the capture and that the guest's clocks shall show, in
   * nanoseconds. Default 0: clocks continue where they stopped. kvmclock adds it only where the
   * capture carried no realtime (otherwise KVM computes it).
   */
  elapsedNs?: bigint;
  /** Use the captured realtime for kvmclock, when there is one. Default true. */
  useRealtime?: boolean;
}

/** What a restore could not do. Everything else that fails throws. */
export interface RestoreReport {
  /** False: TSC of this host cannot be set (read back unequal); the guest sees the host's. */
  tscTaken: boolean;
  /** MSRs that this host refused although the capture had them with value 0 (others throw). */
  msrsSkipped: number[];
}

export interface GuestDebugOptions {
  singleStep?: boolean;
}

export interface VmStats {
  exits: number;
  /** Exits answered while the vCPU was still spinning, and those for which it had to be woken. */
  vcpuSpinHits: number;
  vcpuSleeps: number;
  /** Times the loop had to be woken by its eventfd. */
  loopWakes: number;
  kicks: number;
  /** False where vCPU threads plus the loop outnumber the CPUs of the affinity mask. */
  spins: boolean;
}

/**
 * A virtual machine. Life: created -> start() -> running <-> paused -> destroy(). State calls are
 * valid before start() and while paused, else throw VmmError KVM_NOT_PAUSED.
 */
export interface KvmVm {
  readonly vcpuCount: number;
  readonly slots: readonly ExitSlot[];
  readonly coalesced: { readonly words: Uint32Array; readonly bytes: Uint8Array };
  /** Guest-physical map of everything mapped below, maintained by this object. */
  readonly memory: KvmMemoryMap;

  // Memory. Call while paused or from a handler; KVM itself allows it any time.
  /** New anonymous memory, mapped at guestPhys. Detached (length 0) by destroy(). */
  addMemory(options: MemorySlotOptions): ArrayBuffer;
  /** New memory that is mapped nowhere yet. */
  createBuffer(sizeBytes: number): ArrayBuffer;
  /** Maps part of a buffer of addMemory or createBuffer at another guest physical address. */
  mapAlias(options: MemorySlotOptions & { buffer: ArrayBuffer; offset: number }): void;
  unmapSlot(slot: number): void;
  setDirtyLog(slot: number, on: boolean): void;
  /**
   * Collects and clears the dirty log of all logged slots. Writes page numbers into `list` (no
   * order promised across slots, no duplicates within one call) and returns how many; when the
   * result equals list.length there may be more, which the next call gives.
   */
  harvestDirty(list: Uint32Array): number;
  /** The same as bits: ORs bit (page % 32) of words[page / 32]; returns pages newly set. */
  harvestDirtyBits(words: Uint32Array): number;

  // Running.
  /** Starts the vCPU threads; APs wait for SIPI by their MP state. Once per VM. */
  start(handlers: VmHandlers): void;
  /**
   * Stops all vCPUs at a completed boundary: each pending operation is finished (again through
   * onExit if it takes further exits). Exits with a terminal kind that onExit left open count as
   * stopped. Idempotent. Throws VmmError KVM_EXIT_OPEN (and runs on) when another exit was left
   * open, or when called from inside onExit for such an exit; KVM_PAUSE_TIMEOUT when a vCPU does
   * not stop in time.
   */
  pauseAll(timeoutMs?: number): void;
  /**
   * Like pauseAll, but a pioOut exit that is open, or posted and not yet handled, stays so and is
   * not delivered: captureState then shows the guest before that OUT. May be called from inside
   * onExit of a pioOut. resumeAll goes on with delivering it.
   */
  pauseAllOpen(timeoutMs?: number): void;
  resumeAll(): void;
  readonly paused: boolean;
  /**
   * Ends an exit for which onExit returned false. Not while paused (VmmError KVM_PAUSED), except a
   * terminal one, which then ends with resumeAll.
   */
  completeExit(vcpu: number): void;
  /** Kind of the exit that vcpu has open or posted, 0 if none. */
  openExit(vcpu: number): number;
  /** Delivers what the coalesced ring holds. */
  drainCoalesced(): void;
  /** Calls the handlers of all doorbells that were rung and not yet seen. */
  drainIoEvents(): void;
  setSpin(options: SpinOptions): void;
  stats(): VmStats;
  /** Single step and the like; exits come as EXIT.debug. Paused only. */
  setGuestDebug(vcpu: number, options: GuestDebugOptions): void;

  // State.
  /** All of it; an open OUT is shown as not yet executed. */
  captureState(): KvmState;
  restoreState(state: KvmState, options?: RestoreOptions): RestoreReport;
  getVcpuState(vcpu: number): VcpuState;
  /** Ends a terminal exit that the vCPU stands at: with resumeAll it goes on from the new state. */
  setVcpuState(vcpu: number, state: VcpuState, options?: RestoreOptions): RestoreReport;
  getVmState(): VmState;
  setVmState(state: VmState, options?: RestoreOptions): void;
  getRegs(vcpu: number): BigUint64Array;
  setRegs(vcpu: number, regs: BigUint64Array): void;
  /** struct kvm_sregs; sregs.ts reads and writes its fields. */
  getSregs(vcpu: number): Uint8Array;
  setSregs(vcpu: number, sregs: Uint8Array): void;
  /** CPUID table in force: rows of CPUID_ROW_WORDS u32. */
  getCpuid(vcpu: number): Uint32Array;
  /** Guest virtual (linear) to physical through the vCPU's page tables; null if not mapped. */
  translate(vcpu: number, linear: bigint): number | null;

  // Interrupts.
  /** INTx: level of an irqchip pin (0-23; 0-15 also reach the PICs by the default routes). */
  setIrqLine(gsi: number, level: boolean): void;
  /** Replaces the whole table. Default: pins 0-15 to PIC and IOAPIC (0 to pin 2), 16-23 to IOAPIC. */
  setGsiRoutes(routes: readonly GsiRoute[]): void;
  /** Injects a message at once; false if no LAPIC took it. */
  signalMsi(address: number, data: number): boolean;
  addIrqfd(gsi: number): Irqfd;
  addIoEvent(options: IoEventOptions, onKick: () => void): IoEvent;
  addCoalescedZone(space: 'pio' | 'mmio', address: number, sizeBytes: number): void;
  removeCoalescedZone(space: 'pio' | 'mmio', address: number, sizeBytes: number): void;

  /**
   * Stops and joins all threads, closes all descriptors, unmaps memory (buffers are detached).
   * Idempotent; the finaliser does it too. Not from inside onExit: VmmError KVM_BUSY.
   */
  destroy(): void;
}

/** u32 per row of a CPUID table: function, index, flags, eax, ebx, ecx, edx. */
export const CPUID_ROW_WORDS = 7;
