"""The steps of a build as existing clients count them: 0 to 11 (builder contract, "Life of a build")."""

START, COLLECT, VERIFY, LOAD, SETUP, CREATE, PREPARE, INSTALL, CLEANUP, CLEAN, BOOT, FINAL_STEP = range(12)

TOTAL = FINAL_STEP
STAGE_STEPS = {
    "load": LOAD,
    "setup": SETUP,
    "create": CREATE,
    "prepare": PREPARE,
    "install": INSTALL,
    "cleanup": CLEANUP,
}
