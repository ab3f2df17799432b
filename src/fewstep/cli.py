import os, sys, traceback
def guarded(main):
    try:
        main(); return 0
    except (ValueError, OSError) as e:
        if os.environ.get("FEWSTEP_TRACEBACK"): traceback.print_exc()
        print(f"error: {e}", file=sys.stderr); return 2
