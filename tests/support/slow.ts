/** Why a test is left out: under sanitizers it takes minutes, and what it runs natively is run on less by tests/ops. */
import process from "node:process";

/** The reason, or false where it runs. */
export const slow: string | false = process.env.VECINFER_SANITIZE ? "takes minutes under sanitizers" : false;
