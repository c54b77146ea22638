/**
 * The error of everything that the native library refuses.
 *
 * @module
 */
import * as symbols from "./symbols.ts";

/**
 * Why a call was refused. The first seven are statuses of the library. LIBRARY: no library that fits could be opened.
 * DISPOSED: something was used after it was disposed.
 */
export type ErrorCode =
  | "INVALID_ARGUMENT"
  | "OUT_OF_MEMORY"
  | "NO_DEVICE"
  | "DEVICE_ERROR"
  | "UNSUPPORTED"
  | "INTERNAL_ERROR"
  | "LIBRARY"
  | "DISPOSED";

const codes: Record<number, ErrorCode> = {
  [symbols.VI_INVALID_ARGUMENT]: "INVALID_ARGUMENT",
  [symbols.VI_OUT_OF_MEMORY]: "OUT_OF_MEMORY",
  [symbols.VI_NO_DEVICE]: "NO_DEVICE",
  [symbols.VI_DEVICE_ERROR]: "DEVICE_ERROR",
  [symbols.VI_UNSUPPORTED]: "UNSUPPORTED",
  [symbols.VI_INTERNAL_ERROR]: "INTERNAL_ERROR",
};

/** Thrown by every device, tensor and op. The process and, unless `code` is DEVICE_ERROR, the device go on working. */
export class VecInferError extends Error {
  /** Always "VecInferError". */
  override readonly name: string = "VecInferError";
  /** What kind of error it is. */
  readonly code: ErrorCode;
  /** The library's status (`VI_*`), or -1 where the library was not asked. */
  readonly status: number;

  /** Makes an error from a status of the library or from a code. */
  constructor(reason: number | ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = typeof reason === "number" ? codes[reason] ?? "INTERNAL_ERROR" : reason;
    this.status = typeof reason === "number" ? reason : -1;
  }
}
