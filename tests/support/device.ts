/** The devices that tests run on. @module */
import { test } from "node:test";
import { Device, VecInferError } from "../../lib/device.ts";

function open(name: "cpu" | "cuda"): Device | VecInferError {
  try {
    return Device.open({ device: name });
  } catch (error) {
    if (error instanceof VecInferError && name === "cuda") return error;
    throw error;
  }
}

/** The CPU. Shared by the tests of a file, so no test may dispose it. */
export const cpu: Device = open("cpu") as Device;

const cuda = open("cuda");

/** Registers a test for each library; that for CUDA is skipped by name where there is no device. */
export function testOnDevices(name: string, run: (device: Device) => void | Promise<void>): void {
  test(`${name}: cpu`, () => run(cpu));
  if (cuda instanceof Device) test(`${name}: cuda`, () => run(cuda));
  else test(`${name}: cuda`, { skip: cuda.message.split("\n")[0] }, () => {});
}

/** Why tests of the CUDA library are skipped here, or false. */
export const skipCuda: string | false = cuda instanceof Device ? false : cuda.message.split("\n")[0];
