/**
 * A device that computes, what belongs to it, and recorded graphs of calls.
 *
 * @module
 */
import { type ErrorCode, VecInferError } from "./ffi/error.ts";
import { type Backend, openLibrary, runtime, textOf } from "./ffi/library.ts";
import type { Native, NativePointer, Pointer } from "./ffi/native.ts";

export type {
  Arguments,
  ArgumentTypes,
  Functions,
  Kind,
  Native,
  NativePointer,
  Pointer,
  Symbols,
} from "./ffi/native.ts";
export { symbols } from "./ffi/symbols.ts";
export { type ErrorCode, VecInferError };

/** Which device to open, and how. */
export interface DeviceOptions {
  /** "auto" (the default) is "cuda" where its library opens and finds a GPU, else "cpu"; `device.reason` says why. */
  device?: "auto" | "cpu" | "cuda" | `cuda:${number}`;
  /** Threads of the CPU library; 0, the default, is all. */
  threads?: number;
  /** A library file, or a folder with one, instead of the places that are searched. */
  library?: string;
}

/** What computes, as the library says. */
export interface DeviceInfo {
  /** "vecinfer_cpu" or "vecinfer_cuda". */
  readonly library: string;
  /** The processor's or the GPU's name. */
  readonly device: string;
  /** The architecture, e.g. "x86-64" or "sm_90". */
  readonly compute: string;
  /** CPU threads in use. */
  readonly threads: number;
  /** Instruction sets in use. */
  readonly instructions: string;
  /**
   * The pairs of formats, `keys+values`, whose decode attention has kernels of its own, by channels a head; all else runs in one slower
   * kernel for any pair. Undefined where no pair is slower for it.
   */
  readonly attention?: { readonly [headDim: string]: readonly string[] };
}

/** Memory in bytes. */
export interface MemoryInfo {
  /** What this device object has allocated. Scratch memory of the library is not among it; `free` shows it on a GPU. */
  readonly allocated: number;
  /** The most it ever had. */
  readonly peak: number;
  /** What is free on the device. */
  readonly free: number;
  /** What the device has in all. */
  readonly total: number;
}

/** Functions that give back what a handle or an address stands for. */
type Release =
  | "vi_free"
  | "vi_graph_destroy"
  | "vi_transform_destroy"
  | "vi_quantizer_destroy"
  | "vi_kv_layer_destroy";

/** Something native that belongs to a device and is given back once. */
export class Resource {
  /** Whose it is. */
  readonly device: Device;
  /** The address or handle. */
  readonly pointer: NativePointer;
  /** What messages call it. */
  readonly name: string;
  /** False once it was given back. */
  alive = true;
  readonly #release: Release;

  /** @internal Use {@linkcode Device.adopt}. */
  constructor(device: Device, pointer: NativePointer, release: Release, name: string) {
    this.device = device;
    this.pointer = pointer;
    this.#release = release;
    this.name = name;
  }

  /** Gives it back; a second call does nothing. Refused while a graph is recorded. */
  free(): void {
    if (!this.alive) return;
    if (this.device.recording !== null) {
      throw new VecInferError("INVALID_ARGUMENT", `${this.name} can't be disposed while a graph is recorded`);
    }
    this.alive = false;
    this.device.forget(this);
    this.device.check(this.#release, this.device.native[this.#release](this.device.context, this.pointer));
  }

  /** The error for a use after {@linkcode Resource.free}. */
  disposed(): VecInferError {
    const why = this.device.disposed ? "after its device was disposed" : "after it was disposed";
    return new VecInferError("DISPOSED", `${this.name} was used ${why}`);
  }
}

/** Something that a recorded graph goes on using: it must neither be collected nor disposed before the graph. */
export interface Recorded {
  /** False once it was disposed. */
  readonly alive: boolean;
  /** The error for a use after that. */
  disposedError(): VecInferError;
}

// An owner that was not disposed is given back when it is collected; inside a recording that has to wait. What the
// library reports here comes from earlier calls: it has no caller to go to, and the next call reports it too.
const collected = new FinalizationRegistry<Resource>((resource) => {
  try {
    if (resource.device.recording !== null) resource.device.deferred.push(resource);
    else resource.free();
  } catch (error) {
    if (!(error instanceof VecInferError)) throw error;
  }
});

/** A context of the native library on one device. Use it from one thread. */
export class Device implements Disposable {
  /**
   * The library's functions, for ops. They check nothing that an op checks first: a wrong pointer or size here reads and writes memory that
   * is not yours.
   */
  readonly native: Native;
  /** "cpu", or "cuda:0" and so on. */
  readonly name: string;
  /** What computes. */
  readonly info: DeviceInfo;
  /** Why this device was chosen. */
  readonly reason: string;
  /** What the graph that is being recorded uses; null outside of a recording. */
  recording: Set<Recorded> | null = null;
  /** @internal Collected during a recording, to be freed after it. */
  readonly deferred: Resource[] = [];
  /** @internal Grows when something is disposed, so that graphs know when to look whether they still can run. */
  disposals = 0;
  readonly #resources = new Set<Resource>();
  readonly #out = new Uint8Array(32);
  #context: Pointer;

  private constructor(native: Native, backend: Backend, index: number, threads: number, reason: string) {
    this.native = native;
    this.name = backend === "cpu" ? "cpu" : `cuda:${index}`;
    this.reason = reason;
    const status = native.vi_context_create(this.#out, index, threads);
    this.#context = runtime.pointerFromBytes(this.#out);
    if (this.#context === null) throw new VecInferError(status, `vi_context_create: no context for ${this.name}`);
    try {
      this.check("vi_context_create", status);
      const text = new Uint8Array(4096);
      this.check("vi_device_info", native.vi_device_info(this.#context, text, text.length));
      this.info = JSON.parse(textOf(text));
    } catch (error) {
      native.vi_context_destroy(this.#context);
      throw error;
    }
  }

  /**
   * Opens a device. In Deno this needs --allow-ffi without a path, since pointers are made.
   *
   * Throws VecInferError: LIBRARY with the paths that were tried, NO_DEVICE with the reason.
   */
  static open(options: DeviceOptions = {}): Device {
    const { device = "auto", threads = 0, library } = options;
    const match = /^(?:auto|cpu|cuda(?::(\d{1,3}))?)$/.exec(device);
    if (match === null) {
      throw new VecInferError(
        "INVALID_ARGUMENT",
        `device "${device}" is none of "auto", "cpu", "cuda", "cuda:<index>"`,
      );
    }
    if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
      throw new VecInferError("INVALID_ARGUMENT", `threads is ${threads}; 0 (all) to 1024 are possible`);
    }
    if (device === "cpu") return new Device(openLibrary("cpu", library), "cpu", 0, threads, "cpu was asked for");
    if (device !== "auto") {
      const index = Number(match[1] ?? 0), native = openLibrary("cuda", library);
      const { count, reason } = deviceCount(native);
      if (index < count) return new Device(native, "cuda", index, threads, `${device} was asked for`);
      throw new VecInferError(
        "NO_DEVICE",
        count === 0
          ? `No CUDA device can be used: ${reason}`
          : `There is no cuda:${index}: the devices are cuda:0 to cuda:${count - 1}`,
      );
    }
    const why = cudaProblem(library);
    if (why === undefined) {
      return new Device(openLibrary("cuda", library), "cuda", 0, threads, "auto: a CUDA device was found");
    }
    return new Device(openLibrary("cpu", library), "cpu", 0, threads, `auto: ${why}`);
  }

  /** The library file that computes. */
  get library(): string {
    return this.native.path;
  }

  /** True after dispose. */
  get disposed(): boolean {
    return this.#context === null;
  }

  /** The native context, for ops. Throws VecInferError (DISPOSED) after dispose. */
  get context(): Pointer {
    if (this.#context === null) {
      throw new VecInferError("DISPOSED", `Device ${this.name} was used after it was disposed`);
    }
    return this.#context;
  }

  /** Throws a VecInferError with the library's message unless `status` is VI_OK. */
  check(call: string, status: number): void {
    if (status !== 0) throw this.#error(call, status);
  }

  #error(call: string, status: number): VecInferError {
    const text = new Uint8Array(1024);
    const known = this.#context !== null && this.native.vi_last_error(this.#context, text, text.length) === 0;
    const message = known ? textOf(text) : "";
    return new VecInferError(status, message.startsWith(call) ? message : `${call}: ${message || `status ${status}`}`);
  }

  /** @internal Allocates `bytes` for `owner`. */
  allocate(owner: object, bytes: number, name: string): Resource {
    this.check("vi_allocate", this.native.vi_allocate(this.context, this.#out, bytes));
    return this.adopt(owner, this.#out, "vi_free", name);
  }

  /** @internal Takes charge of a handle that the library wrote to `out`, until it is freed or `owner` is collected. */
  adopt(owner: object, out: Uint8Array, release: Release, name: string): Resource {
    const pointer = runtime.pointerFromBytes(out);
    if (pointer === null) throw new VecInferError("INTERNAL_ERROR", `${name}: the library returned no address`);
    const resource = new Resource(this, pointer, release, name);
    this.#resources.add(resource);
    collected.register(owner, resource, resource);
    return resource;
  }

  /** @internal A resource is about to be given back. */
  forget(resource: Resource): void {
    this.#resources.delete(resource);
    this.disposals++;
    collected.unregister(resource);
  }

  /** Bytes allocated and free. */
  memory(): MemoryInfo {
    this.check("vi_memory_info", this.native.vi_memory_info(this.context, this.#out));
    const view = new DataView(this.#out.buffer);
    const [allocated, peak, free, total] = [0, 8, 16, 24].map((at) => Number(view.getBigInt64(at, true)));
    return { allocated, peak, free, total };
  }

  /** Waits until everything asked for has run. Throws VecInferError (DEVICE_ERROR) for what failed on the way. */
  synchronize(): void {
    this.check("vi_synchronize", this.native.vi_synchronize(this.context));
  }

  /** Records event `index` (0..63) between the calls before and after. */
  recordEvent(index: number): void {
    this.check("vi_event_record", this.native.vi_event_record(this.context, index));
  }

  /** Waits for event `last`; returns the milliseconds since event `first`. */
  elapsed(first: number, last: number): number {
    this.check("vi_event_elapsed", this.native.vi_event_elapsed(this.context, this.#out, first, last));
    return new DataView(this.#out.buffer).getFloat32(0, true);
  }

  /** Runs `call` and waits; returns the milliseconds the device took. Uses the events 62 and 63. */
  time(call: () => void): number {
    this.recordEvent(62);
    call();
    this.recordEvent(63);
    return this.elapsed(62, 63);
  }

  /**
   * Records the ops that `call` makes, without running them. Allocating, disposing, reading and waiting are refused in
   * `call`. An error thrown in it, or by the library, ends the recording.
   */
  capture(call: () => void): Graph {
    if (this.recording !== null) throw new VecInferError("INVALID_ARGUMENT", "a graph is being recorded already");
    const used = new Set<Recorded>();
    this.check("vi_graph_begin", this.native.vi_graph_begin(this.context));
    this.recording = used;
    let failed = true;
    let status: number;
    try {
      call();
      failed = false;
    } finally {
      this.recording = null;
      this.#out.fill(0, 0, 8);
      status = this.native.vi_graph_end(this.context, this.#out);
      const pointer = status === 0 && failed ? runtime.pointerFromBytes(this.#out) : null;
      if (pointer !== null) this.native.vi_graph_destroy(this.context, pointer);
      for (const resource of this.deferred.splice(0)) resource.free();
    }
    this.check("vi_graph_end", status);
    return new Graph(this, this.#out, used);
  }

  /** Waits, frees all that still belongs to the device, then the device. Its tensors throw from here on. */
  [Symbol.dispose](): void {
    if (this.#context === null) return;
    if (this.recording !== null) {
      throw new VecInferError("INVALID_ARGUMENT", `Device ${this.name} can't be disposed while a graph is recorded`);
    }
    // Newest first: a layer before its quantizers, a graph before what it uses. The first error is thrown at the end.
    const errors: unknown[] = [];
    for (const resource of [...this.#resources].reverse()) {
      try {
        resource.free();
      } catch (error) {
        errors.push(error);
      }
    }
    const context = this.#context;
    this.#context = null;
    const status = this.native.vi_context_destroy(context);
    if (errors.length > 0) throw errors[0];
    if (status !== 0) throw new VecInferError(status, `vi_context_destroy: status ${status}`);
  }
}

/** Calls recorded by {@linkcode Device.capture}. Keeps what they use from being collected. */
export class Graph implements Disposable {
  readonly #device: Device;
  readonly #resource: Resource;
  readonly #used: Set<Recorded>;
  #seen: number;

  /** @internal Use {@linkcode Device.capture}. */
  constructor(device: Device, out: Uint8Array, used: Set<Recorded>) {
    this.#device = device;
    this.#used = used;
    this.#seen = device.disposals;
    this.#resource = device.adopt(this, out, "vi_graph_destroy", "Graph");
  }

  /** Runs the calls again, with the same tensors and sizes. Throws VecInferError (DISPOSED) where one of them is gone. */
  launch(): void {
    const device = this.#device;
    if (!this.#resource.alive) throw this.#resource.disposed();
    if (this.#seen !== device.disposals) this.#verify();
    const status = device.native.vi_graph_launch(device.context, this.#resource.pointer);
    if (status !== 0) device.check("vi_graph_launch", status);
  }

  #verify(): void {
    for (const used of this.#used) {
      if (used.alive) continue;
      const error = used.disposedError();
      throw new VecInferError(error.code, `Graph: ${error.message}`);
    }
    this.#seen = this.#device.disposals;
  }

  /** Frees the graph. */
  [Symbol.dispose](): void {
    this.#resource.free();
  }
}

/** How many devices a library can use, or why none. */
function deviceCount(native: Native): { count: number; reason: string } {
  const out = new Uint8Array(4), reason = new Uint8Array(1024);
  const status = native.vi_device_count(out, reason, reason.length);
  if (status !== 0) return { count: 0, reason: textOf(reason) || `vi_device_count: status ${status}` };
  return { count: new DataView(out.buffer).getInt32(0, true), reason: textOf(reason) };
}

/** Why "auto" can't be "cuda", or undefined where it can. */
function cudaProblem(library: string | undefined): string | undefined {
  try {
    const { count, reason } = deviceCount(openLibrary("cuda", library));
    return count > 0 ? undefined : `no CUDA device can be used: ${reason}`;
  } catch (error) {
    if (error instanceof VecInferError) return error.message;
    throw error;
  }
}
