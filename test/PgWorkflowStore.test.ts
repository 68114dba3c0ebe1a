/** The store on PostgreSQL against the suite of the seam. */
import * as Layer from "effect/Layer"
import { layer } from "./conformance/Postgres.ts"
import { suite } from "./WorkflowStoreConformance.ts"

suite("PgWorkflowStore", Layer.orDie(layer({ clock: "test" })))
