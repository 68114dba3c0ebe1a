/** The reference implementation against the suite that it is the reference of. */
import * as MemoryOutboxStore from "../src/MemoryOutboxStore.ts"
import { suite } from "./conformance/Outbox.ts"

suite("MemoryOutboxStore", MemoryOutboxStore.layer)
