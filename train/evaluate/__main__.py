"""`python -m train.evaluate RUN`. Each simulator's process imports this module: it is light."""

if __name__ == "__main__":
    from train.evaluate.command import main

    main()
