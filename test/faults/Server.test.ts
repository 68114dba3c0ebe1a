import { shortForms } from "./ShortForms.ts"

shortForms("server")
