import "@fontsource-variable/inter/wght.css";
import "./style/base.css";
import "./style/controls.css";
import "./style/shell.css";
import "./style/chat.css";
import "./style/reply.css";
import "./style/loop.css";

import { render } from "preact";
import { App } from "./App.tsx";
import { startConversations } from "./chat/conversations.ts";
import { startVotes } from "./chat/votes.ts";
import { startDeployment } from "./deployment.ts";
import { startPreferences } from "./preferences.ts";
import { startRouter } from "./router.ts";
import { startAnnouncing } from "./ui/announce.tsx";

startPreferences();
startConversations();
startRouter();
startDeployment();
startAnnouncing();
startVotes();
render(<App />, document.getElementById("page") as HTMLElement);
